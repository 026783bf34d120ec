//! Commands that a group agreed on, whatever they are, and what is then asked of the state.
//!
//! A log is applied by every member and for ever, so a command that cannot be applied would end the group. The rules may
//! refuse one; nothing may fail.

use super::super::tape::{TERM, Tape};
use super::super::{Body, Entry, LogPosition, Store};
use super::{close, emptied, open, view};
use crate::api::{Command, Proposal};
use crate::codec::layout::{Input, Layout};
use crate::types::{Revision, TxnOp};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// Entries of one log; more say nothing new.
const ENTRIES_MAX: usize = 256;

/// A log, and questions.
pub(crate) fn apply(folder: &Path, input: &[u8]) {
    let Some((how, bytes)) = input.split_first() else { return };
    let mut log = Log { store: open(&emptied(folder)), index: 0 };
    if how & 1 == 1 {
        log.play(&mut Tape::new(bytes));
    } else {
        log.replay(bytes, 1 + usize::from(how >> 1) % 8);
    }
    view(&log.store).verify().expect("the state is whole, whatever was applied");
    close(log.store);
}

struct Log {
    store: Store,
    index: u64,
}

impl Log {
    /// Applies proposals as they stand in a log, a few at once.
    fn replay(&mut self, bytes: &[u8], at_once: usize) {
        let input = &mut Input::new(Bytes::copy_from_slice(bytes));
        let read = || Proposal::read(input).ok();
        let proposals: Vec<_> = std::iter::from_fn(read).take(ENTRIES_MAX).collect();
        for some in proposals.chunks(at_once) {
            self.apply(some);
        }
    }

    /// Applies what stands on a tape, and asks what stands on it.
    fn play(&mut self, tape: &mut Tape<'_>) {
        while !tape.is_empty() && self.index < ENTRIES_MAX as u64 {
            if tape.once_in(3) {
                let rows_max = 1 + tape.below(4);
                self.store.compact_step(rows_max).expect("history can be forgotten");
            }
            let now = view(&self.store);
            tape.revisions = (now.compact_revision().get(), now.revision().get());
            let leases = now.leases().expect("each lease can be read");
            tape.leases = leases.into_iter().map(|(id, _)| id).collect();
            drop(now);
            let proposals: Vec<Proposal> = (0..tape.below(8)).map(|_| tape.proposal()).collect();
            let are_new = proposals.iter().filter(|it| it.command == Command::Register);
            tape.clients += are_new.count() as u64;
            self.apply(&proposals);
            self.ask(tape);
        }
    }

    fn apply(&mut self, proposals: &[Proposal]) {
        let entries: Vec<Entry> = proposals.iter().map(|it| self.entry(it)).collect();
        let batch = self.store.apply(&entries).expect("the rules may refuse, nothing may fail");
        let after = view(&self.store);
        assert_eq!(batch.revision, after.revision());
        assert_eq!(batch.outcomes.len(), proposals.len());
    }

    fn entry(&mut self, proposal: &Proposal) -> Entry {
        self.index += 1;
        let position = LogPosition { term: TERM, node: 1, index: self.index };
        Entry { position, body: Body::Command(Arc::new(proposal.clone())) }
    }

    fn ask(&self, tape: &mut Tape<'_>) {
        let view = view(&self.store);
        let query: TxnOp = tape.query();
        let _ = view.query(&query).expect("the rules may refuse, nothing may fail");
        let mut cursor = tape.cursor();
        let bytes_max = [usize::MAX, 0, 200, 2000][tape.below(4)];
        loop {
            let step = view.events(&cursor, view.revision(), bytes_max);
            let Ok(step) = step.expect("the rules may refuse, nothing may fail") else { break };
            assert!(step.next > cursor.next || !step.more, "each step moves on");
            cursor.next = step.next;
            if !step.more {
                break;
            }
        }
        let far = Revision::from(u64::MAX);
        let upto = view.events(&cursor, far, bytes_max);
        let _ = upto.expect("the rules may refuse, nothing may fail");
        let _ = view.lease(tape.lease()).expect("each lease can be read");
    }
}

#[cfg(test)]
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    use crate::types::{Compare, KeyRange, LeaseId, Op};
    use std::time::Duration;
    let txn = |op: Op| Command::Txn(TxnOp::single(op.0));
    let nested = Op::txn([Compare::absent("b")], [Op::put("b", "2").prev()], [Op::get("a")]);
    let grant = |id: u64, ms| Command::Grant {
        id: Some(LeaseId::from(id)),
        ttl: Duration::from_millis(ms),
    };
    let commands = [
        txn(Op::put("a", "1")),
        grant(7, 3000),
        txn(Op::put("leased", vec![7; 300]).lease(LeaseId::from(7))),
        txn(nested),
        txn(Op::range(KeyRange::all())),
        txn(Op::delete("a"..)),
        Command::Compact(Revision::from(3)),
        Command::Revoke(LeaseId::from(7)),
        Command::Expire { deciding_term: TERM, leases: vec![LeaseId::from(7)] },
    ];
    let log = |commands: &[Command]| {
        let mut bytes = vec![0];
        for command in commands {
            Proposal::from(command.clone()).write(&mut bytes);
        }
        bytes
    };
    let all = log(&commands);
    let together = [&[14], &all[1..]].concat();
    let tape = |seed: u32| {
        let noise = |it: &u32| Some(it.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        let noise = std::iter::successors(Some(seed), noise).map(|it| (it >> 24) as u8);
        std::iter::once(1).chain(noise.skip(1).take(300)).collect::<Vec<u8>>()
    };
    let far =
        [txn(Op::put("a", "1")), grant(u64::MAX, u64::MAX), Command::Compact(u64::MAX.into())];
    vec![
        ("each-command".to_owned(), all),
        ("each-command-together".to_owned(), together),
        ("numbers-at-their-ends".to_owned(), log(&far)),
        ("tape-1".to_owned(), tape(1)),
        ("tape-2".to_owned(), tape(2)),
        ("tape-3".to_owned(), tape(3)),
    ]
}
