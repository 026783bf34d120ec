//! Errors: what they say, and what is to be done about them.

use super::*;

#[test]
fn the_text_says_what_happened_and_what_remains_unknown() {
    let error = Error::new(Reason::DeadlinePassed { waited: Duration::from_secs(2) });
    assert_eq!(error.clone().to_string(), "no answer within 2s");
    let unknown = error.unknown_outcome();
    assert_eq!(unknown.to_string(), "no answer within 2s; the write may have been applied");
    assert!(unknown.is_retryable() && unknown.may_have_applied());
}

/// For that the state of another member is taken, and its own is not looked at any more.
#[test]
fn only_damage_of_the_tables_is_taken_for_such() {
    let damaged = Fault::damaged("a row");
    assert!(damaged.is_of_tables() && !damaged.clone().elsewhere().is_of_tables());
    assert_eq!(*damaged.reason(), Reason::Corrupt { detail: "a row".to_owned() });
    let others = [
        Fault::corrupt("the log"),
        Fault::format("a newer one"),
        Fault::disk("cannot read", std::io::Error::other("no")),
        Fault::assertion("a bug"),
    ];
    assert!(others.iter().all(|fault| !fault.is_of_tables()));
}

#[test]
fn an_error_is_one_word_wide() {
    assert_eq!(size_of::<Error>(), size_of::<usize>());
}
