//! Behaviour through the public API. One binary, since each links everything.

#![expect(clippy::print_stdout, reason = "a test says its seed and what it has counted")]
#![expect(clippy::disallowed_methods, reason = "these tests run against real clocks and processes")]

mod backup;
mod bad_input;
mod cancel;
mod crash;
mod group;
mod kit;
mod lifecycle;
mod members;
mod recipes;
mod remote;
