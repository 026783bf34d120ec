//! What must hold, one file for each statement.

pub mod acknowledged;
pub mod agreement;
pub mod consensus;
pub mod order;
pub mod reads;
pub mod replay;

use crate::book::Pages;
use agreement::Truth;

/// Everything that is checked at the end of a run; each violation in words.
pub fn all(pages: &Pages, truth: &Truth) -> Vec<String> {
    let mut violations = Vec::new();
    acknowledged::check(pages, truth, &mut violations);
    order::check(pages, &mut violations);
    reads::check(pages, truth, &mut violations);
    violations
}
