//! **Revisions are in the order of time.** If one operation ended before another began, its revision is not the higher
//! one; and it is lower if the other has changed something. Reads that asked for no more than some state are exempt.
//!
//! Together with the answers, which are judged by the state at their revisions, this is strict serializability. It trusts
//! the revisions; the search in [`linear`](super::linear) does not.
//!
//! **Nobody goes back.** What a client was answered or told by a watch, by whichever member, nothing that it asks for later
//! is older than: not even a read that asked for no more than some state.

use crate::book::Pages;
use crate::history::{Mode, Moment, Operation, Outcome};
use std::collections::BTreeMap;

/// Something that showed a revision.
#[derive(Clone)]
struct Span {
    start: Moment,
    end: Moment,
    revision: u64,
    /// Whether it must not be older than what ended before it began. A watch may be far behind.
    is_bound: bool,
    what: String,
}

pub fn check(pages: &Pages, violations: &mut Vec<String>) {
    let mut of_all = Vec::new();
    let mut of_each: BTreeMap<u32, Vec<Span>> = BTreeMap::new();
    for (client, mode, span) in spans(pages) {
        if mode == Some(Mode::Linearizable) {
            of_all.push(span.clone());
        }
        of_each.entry(client).or_default().push(span);
    }
    sweep("order", &of_all, violations);
    of_each.values().for_each(|spans| sweep("a client goes back", spans, violations));
}

/// All that showed a revision: to whom, and how it was asked for.
fn spans(pages: &Pages) -> impl Iterator<Item = (u32, Option<Mode>, Span)> {
    let answered = |operation: &Operation| match operation.outcome {
        Outcome::Done { end, revision, .. } => {
            let what = format!("{operation:?}");
            let span = Span { start: operation.start, end, revision, is_bound: true, what };
            Some((operation.client, Some(operation.mode), span))
        }
        Outcome::Refused | Outcome::Unknown => None,
    };
    let reads = pages.reads.iter().filter(|it| it.at.is_none()).map(|read| {
        let (start, end) = (read.start, read.end);
        let what = format!("a range of {} keys from {start:?} to {end:?}", read.entries.len());
        let span = Span { start, end, revision: read.revision, is_bound: true, what };
        (read.client, Some(read.mode), span)
    });
    let told = pages.watches.iter().flat_map(|watched| {
        watched.told.iter().zip(&watched.told_at).map(|(changes, at)| {
            let (revision, what) = (changes.revision.get(), format!("a change told at {at:?}"));
            (watched.client, None, Span { start: *at, end: *at, revision, is_bound: false, what })
        })
    });
    pages.operations.iter().filter_map(answered).chain(reads).chain(told)
}

fn sweep(rule: &str, spans: &[Span], violations: &mut Vec<String>) {
    let mut by_start: Vec<&Span> = spans.iter().filter(|span| span.is_bound).collect();
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
                "{rule}: revision {} began after {} had ended: {} after {}",
                span.revision, highest.revision, span.what, highest.what
            ));
        }
    }
}
