//! The limits of keys, values and requests. Each is checked before a request reaches the log, but for those that depend on what
//! is there: how many keys a write deletes or goes through or a lease has, how large an answer is, and how many clients there are is found
//! out where it is applied, by all members alike, and nothing is changed then.
//!
//! ```
//! use quorate::limits;
//! assert!(limits::KEY_BYTES_MAX < limits::VALUE_BYTES_MAX);
//! ```

use std::time::Duration;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest key after its zero bytes were doubled, as history stores it. Only keys with many zero bytes notice.
pub const ESCAPED_KEY_BYTES_MAX: usize = 1900;
/// The largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// The largest write, in bytes: all keys, values and comparisons of one transaction together.
pub const REQUEST_BYTES_MAX: usize = 1536 * 1024;
/// The most comparisons, or operations in one branch, of a transaction. A nested one may have as many as those around it
/// leave of them.
pub const TXN_OPERATIONS_MAX: usize = 128;
/// The most comparisons and operations of a transaction and of all that are nested in it, in all branches.
pub const TXN_OPERATIONS_ALL_MAX: usize = 4096;
/// How deep transactions nest.
pub const TXN_DEPTH_MAX: usize = 8;
/// The most writes, cursors or leases in one call between processes.
pub const BATCH_MAX: usize = 4096;
/// The most leases that one log entry expires.
pub const EXPIRE_LEASES_MAX: usize = 1000;
/// The most keys that are attached to one lease: they go together.
pub const LEASE_KEYS_MAX: u64 = 100 * 1000;
/// The longest time to live of a lease: 100 years.
pub const TTL_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// The longest that one call may wait, whatever its caller asks for.
pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// The most bytes of key-values that one page of a range read carries.
pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most bytes of key-values that the answer of one transaction carries.
pub const ANSWER_BYTES_MAX: usize = 12 * 1024 * 1024;
/// The most keys that one transaction deletes. Where its ranges overlap, a key counts for each; so does one that is named and
/// not there.
pub const DELETED_KEYS_MAX: u64 = 100 * 1000;
/// The most keys that the comparisons and ranges of one write go through, those beyond a limit or a page that are only counted
/// included; in a read of the past, those that are there now or have gone since history begins. Each 4 KiB of a value that is
/// compared or sorted by count for a key. All members do that before anything else is applied. Reads alone have no such limit.
pub const READ_KEYS_MAX: u64 = 1000 * 1000;
/// The first byte that no key may begin with: the group keeps such keys for itself.
pub const RESERVED_FIRST_BYTE: u8 = 0;
/// The most clients whose writes a group carries out once however often they are sent. Further ones send each write once.
pub const CLIENTS_MAX: usize = 100 * 1000;
/// The most writes of one client that are under way at once. Further ones wait.
pub const OUTSTANDING_MAX: usize = 4096;
/// How long a client is remembered that does not write. A leader counts it, in tenths, and another one begins anew.
pub const CLIENT_IDLE: Duration = Duration::from_secs(3600);
