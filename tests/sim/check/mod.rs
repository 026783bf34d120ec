//! What must hold, one file for each statement.

pub mod acknowledged;
pub mod agreement;
pub mod consensus;
pub mod fencing;
pub mod leases;
pub mod linear;
pub mod order;
pub mod reads;
pub mod replay;
pub mod watches;

use crate::book::Pages;
use agreement::Truth;

/// Everything that is checked at the end of a run; each violation in words.
pub fn all(pages: &Pages, truth: &Truth) -> Vec<String> {
    let mut violations = Vec::new();
    acknowledged::check(pages, truth, &mut violations);
    order::check(pages, &mut violations);
    if let Err(violation) = linear::check(&pages.operations) {
        violations.push(format!("linear: {violation}"));
    }
    reads::check(pages, truth, &mut violations);
    watches::check(pages, truth, &mut violations);
    leases::check(pages, truth, &mut violations);
    fencing::check(pages, truth, &mut violations);
    violations
}
