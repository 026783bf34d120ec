//! **Revisions are in the order of time.** If one operation ended before another began, its revision is not the higher
//! one; and it is lower if the other has changed something. Reads that asked for no more than some state are exempt.
//!
//! Together with the answers, which are judged by the state at their revisions, this is strict serializability. It trusts
//! the revisions; the search in [`linear`](super::linear) does not.

use crate::book::Pages;
use crate::history::{Mode, Moment, Outcome};

struct Span {
    start: Moment,
    end: Moment,
    revision: u64,
    what: String,
}

pub fn check(pages: &Pages, violations: &mut Vec<String>) {
    let operations = pages.operations.iter().filter(|it| it.mode == Mode::Linearizable);
    let mut spans: Vec<Span> = operations
        .filter_map(|operation| match operation.outcome {
            Outcome::Done { end, revision, .. } => {
                let what = format!("{operation:?}");
                Some(Span { start: operation.start, end, revision, what })
            }
            Outcome::Refused | Outcome::Unknown => None,
        })
        .collect();
    let reads = pages.reads.iter().filter(|it| it.mode == Mode::Linearizable && it.at.is_none());
    spans.extend(reads.map(|read| Span {
        start: read.start,
        end: read.end,
        revision: read.revision,
        what: format!(
            "a range of {} keys from {:?} to {:?}",
            read.entries.len(),
            read.start,
            read.end
        ),
    }));
    let mut by_start: Vec<&Span> = spans.iter().collect();
    by_start.sort_by_key(|span| span.start);
    let mut by_end: Vec<&Span> = spans.iter().collect();
    by_end.sort_by_key(|span| span.end);
    let mut ended = by_end.into_iter().peekable();
    let mut highest: Option<&Span> = None;
    for span in by_start {
        while let Some(earlier) = ended.next_if(|earlier| earlier.end < span.start) {
            if highest.is_none_or(|highest| highest.revision < earlier.revision) {
                highest = Some(earlier);
            }
        }
        if let Some(highest) = highest.filter(|highest| highest.revision > span.revision) {
            violations.push(format!(
                "order: revision {} began after {} had ended: {} after {}",
                span.revision, highest.revision, span.what, highest.what
            ));
        }
    }
}
