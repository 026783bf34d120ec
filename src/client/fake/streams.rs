//! The watches of a fake group.

use super::World;
use crate::api::{Cursor, CursorId, Follow, Followed, News, Position};
use crate::error::Reason;
use crate::types::{Changes, Event, Revision};
use std::collections::{BTreeMap, HashSet};

#[derive(Default)]
pub(crate) struct Stream {
    number: u64,
    /// The number of the last call.
    call: u64,
    /// The cursors before and after the last answer.
    before: BTreeMap<CursorId, Cursor>,
    after: BTreeMap<CursorId, Cursor>,
    used: HashSet<CursorId>,
}

impl Stream {
    /// How many cursors are on it.
    pub(crate) fn cursors(&self) -> usize {
        self.after.len()
    }
}

impl World {
    /// One step of a stream, if there is news or no more time.
    pub(super) fn step(&mut self, follow: &Follow, last: bool) -> Option<Followed> {
        if self.forgetful && follow.after > 0 {
            return Some(Followed::Unknown);
        }
        assert!(follow.call > 0, "calls are numbered from 1");
        // A stream that is begun anew keeps its number, and its calls go on counting.
        let newest = self.streams.get(&follow.stream).map_or(0, |stream| stream.call);
        if follow.call < newest {
            return Some(Followed::Unknown);
        }
        if follow.after == 0 {
            self.streams.insert(follow.stream, Stream::default());
        }
        let Some(stream) = self.streams.get_mut(&follow.stream) else {
            return Some(Followed::Unknown);
        };
        stream.call = follow.call;
        let before = match follow.after {
            after if after == stream.number => stream.after.clone(),
            // The answer was lost: take it back.
            after if after + 1 == stream.number => stream.before.clone(),
            _ => return Some(Followed::Unknown),
        };
        let mut cursors = before.clone();
        follow.removed.iter().for_each(|id| drop(cursors.remove(id)));
        cursors.extend(follow.added.iter().cloned());
        let mut news = Vec::new();
        let mut progress = self.revision;
        cursors.retain(|id, cursor| {
            let item = self.read(cursor);
            let more = cursor.next.revision.get() <= self.revision && item.is_some();
            progress = if more { progress.min(cursor.next.revision.get() - 1) } else { progress };
            let goes_on = !matches!(item, Some(News::Ended(_)));
            news.extend(item.map(|item| (*id, item)));
            goes_on
        });
        if news.is_empty() && !last {
            return None;
        }
        let number = follow.after + 1;
        let stream = self.streams.get_mut(&follow.stream)?;
        for (id, _) in &follow.added {
            assert!(stream.used.insert(*id), "{id:?} was used twice on one stream");
        }
        (stream.number, stream.before, stream.after) = (number, before, cursors);
        Some(Followed::Step { number, progress: Revision::from(progress), news })
    }

    /// What a cursor has not seen yet. Moves it on.
    fn read(&self, cursor: &mut Cursor) -> Option<News> {
        if cursor.next.revision.get() < self.compacted {
            return Some(News::Ended(Reason::Compacted { at: Revision::from(self.compacted) }));
        }
        let mut changes = Vec::<Changes>::new();
        let (mut taken, mut fragment) = (0, false);
        let mut from = cursor.next;
        if from.revision.get() <= self.revision && from.sub == 0 {
            from.revision = Revision::from(from.revision.get().saturating_sub(self.stale).max(2));
        }
        let start = self.history.partition_point(|it| it.revision < from.revision);
        if from.sub > 0 {
            // What begins inside of a revision says so, though nothing of the rest may match.
            changes.push(Changes { revision: from.revision, events: Vec::new() });
        }
        'all: for all in &self.history[start..] {
            for (index, event) in all.events.iter().enumerate() {
                let sub = index as u32;
                if (Position { revision: all.revision, sub }) < from {
                    continue;
                }
                if taken == self.fragment {
                    cursor.next = Position { revision: all.revision, sub };
                    fragment = index > 0;
                    break 'all;
                }
                if let Some(event) = shown(event, cursor) {
                    taken += 1;
                    match changes.last_mut().filter(|last| last.revision == all.revision) {
                        Some(last) => last.events.push(event),
                        None => {
                            changes.push(Changes { revision: all.revision, events: vec![event] })
                        }
                    }
                }
            }
            cursor.next = Position::start_of(all.revision.next());
        }
        let fragment =
            fragment && changes.last().is_some_and(|c| c.revision == cursor.next.revision);
        (!changes.is_empty()).then_some(News::Changes { changes, next: cursor.next, fragment })
    }
}

fn shown(event: &Event, cursor: &Cursor) -> Option<Event> {
    if !cursor.range.contains(event.key()) {
        return None;
    }
    let mut event = event.clone();
    match &mut event {
        Event::Put { prev, .. } if cursor.puts => *prev = prev.take().filter(|_| cursor.prev),
        Event::Delete { prev, .. } if cursor.deletes => {
            *prev = prev.take().filter(|_| cursor.prev);
        }
        Event::Put { .. } | Event::Delete { .. } => return None,
    }
    Some(event)
}
