//! The beginnings and ends of the calls that are not in the order yet, by time: a list with links in both directions,
//! so that a call is taken out and put back at once (Lowe).
//!
//! ```text
//!   head ⇄ ( a ⇄ ( b ⇄ ( c ⇄ ) b ⇄ ( d ⇄ ) a …
//!            └─── open ───┘     └ so b must be next, or after other open calls
//! ```
//!
//! Invariant: what was taken out last is put back first. Its own links still say where it was.

use super::call::Call;

#[derive(Debug)]
pub(super) struct Events {
    events: Vec<Event>,
    next: Vec<usize>,
    back: Vec<usize>,
    /// For each call, the places of its beginning and its end.
    places: Vec<(usize, Option<usize>)>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Head,
    Begin(usize),
    End(usize),
}

/// The place before the first event.
pub(super) const HEAD: usize = 0;

impl Events {
    pub(super) fn new(calls: &[Call<'_>]) -> Self {
        let mut timed = Vec::new();
        for (index, call) in calls.iter().enumerate() {
            timed.push((call.start(), false, Event::Begin(index)));
            timed.extend(call.end().map(|end| (end, true, Event::End(index))));
        }
        // Nobody knows the order of what happens at one moment: beginnings come first, so that all of it overlaps.
        timed.sort_by_key(|(moment, is_end, _)| (*moment, *is_end));
        let events = timed.into_iter().map(|(_, _, event)| event);
        let events: Vec<Event> = [Event::Head].into_iter().chain(events).collect();
        let mut places = vec![(HEAD, None); calls.len()];
        for (place, event) in events.iter().enumerate() {
            match *event {
                Event::Head => {}
                Event::Begin(index) => places[index].0 = place,
                Event::End(index) => places[index].1 = Some(place),
            }
        }
        let next = (1..=events.len()).collect();
        let back = (0..=events.len()).map(|place| place.saturating_sub(1)).collect();
        Self { events, next, back, places }
    }

    /// The calls that have begun before the first end, and the call that ends there.
    pub(super) fn open(&self) -> (Vec<usize>, Option<usize>) {
        let mut open = Vec::new();
        let mut at = HEAD;
        while let Some((place, index)) = self.begin_after(at) {
            open.push(index);
            at = place;
        }
        match self.events.get(self.next[at]) {
            Some(Event::End(index)) => (open, Some(*index)),
            Some(Event::Head | Event::Begin(_)) | None => (open, None),
        }
    }

    /// The call that begins next after a place, and its own place, unless a call ends before.
    pub(super) fn begin_after(&self, place: usize) -> Option<(usize, usize)> {
        let place = self.next[place];
        match self.events.get(place) {
            Some(Event::Begin(index)) => Some((place, *index)),
            Some(Event::Head | Event::End(_)) | None => None,
        }
    }

    pub(super) fn take_out(&mut self, index: usize) {
        let (begin, end) = self.places[index];
        for place in [Some(begin), end].into_iter().flatten() {
            let (back, next) = (self.back[place], self.next[place]);
            self.next[back] = next;
            self.back[next] = back;
        }
    }

    pub(super) fn put_back(&mut self, index: usize) {
        let (begin, end) = self.places[index];
        for place in [end, Some(begin)].into_iter().flatten() {
            let (back, next) = (self.back[place], self.next[place]);
            self.next[back] = place;
            self.back[next] = place;
        }
    }
}
