//! openraft's own conformance suite, on our log and state machine.

use super::Types;
use super::log::LogStore;
use super::machine::Machine;
use super::state::State;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<Types, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<Types>> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = LogStore::open(&folder.path().join("raft"), 64 << 20).expect("an empty log");
        let state = State::open(folder.path(), 64 << 20).expect("an empty state");
        // The suite applies entries that it has not appended.
        Ok((folder, log, Machine::new(state, None)))
    }
}

#[test]
fn our_log_and_state_machine_keep_openrafts_contract() {
    Types::run(async { Suite::test_all(Builder).await }).unwrap();
}
