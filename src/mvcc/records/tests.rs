//! The bytes of each record, which are those on the disks of groups that run.

use super::*;

const POSITION: Position = Position { revision: Revision::FIRST, sub: 2 };
const LOG: LogPosition = LogPosition { term: 3, node: 1, index: 258 };

fn image(value: &'static [u8]) -> Image {
    Image {
        create_revision: Revision::from(1),
        modified: POSITION,
        version: 4,
        lease: Some(LeaseId::from(7)),
        turn: 5,
        value: Value::of(&Bytes::from_static(value)),
    }
}

const IMAGE: &[u8] = &[
    0, 0, 0, 0, 0, 0, 0, 1, // create_revision
    0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, // modified
    0, 0, 0, 0, 0, 0, 0, 4, // version
    0, 0, 0, 0, 0, 0, 0, 7, // lease
    5, // turn
    0, 0, 0, 2, b'v', b'w', // value
];

/// A record has these bytes as content, a version before and a checksum behind them, and comes back.
fn golden<R: Record + PartialEq + std::fmt::Debug>(record: &R, content: &[u8]) {
    let mut row = vec![1];
    row.extend(content);
    let covered = [&[R::TABLE as u8], &b"key"[..], &row].concat();
    row.extend(crc32c::crc32c(&covered).to_be_bytes());
    assert_eq!(record.seal(b"key").escape_ascii().to_string(), row.escape_ascii().to_string());
    assert_eq!(&R::open(b"key", &row).unwrap(), record);
    assert!(R::open(b"kez", &row).is_err(), "another key");
    let longer = { [&row[..row.len() - 4], &[0], &row[row.len() - 4..]].concat() };
    assert!(R::open(b"key", &longer).is_err() && R::open(b"key", &[]).is_err());
}

#[test]
fn the_checksum_is_crc32c() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(Table::ALL.map(|table| table as u8), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let sealed = Format::CURRENT.seal(Format::KEY);
    assert_eq!(sealed, [1, 0, 4, 0, 1, 35, 210, 71, 225]);
}

#[test]
fn the_bytes_of_a_state_are_golden() {
    golden(&image(b"vw"), IMAGE);
    let plain = Image { lease: None, value: Value::Inline(Bytes::new()), ..image(b"") };
    let golden_plain = [&IMAGE[..28], &[0; 8], &[5], &[0; 4]].concat();
    golden(&plain, &golden_plain);
}

#[test]
fn a_long_value_stands_elsewhere() {
    let long = Image { value: Value::of(&Bytes::from(vec![9; 65])), ..image(b"") };
    let digest = hash::digest(&[9; 65]).to_be_bytes();
    golden(&long, &[&IMAGE[..37], &[0, 0, 0, 65], &digest].concat());
    let longest_inline = Value::of(&Bytes::from(vec![9; 64]));
    assert!(matches!(longest_inline, Value::Inline(_)));
    let row = LargeValue { key: "k".into(), value: "long".into() };
    golden(&row, &[0, 0, 0, 1, b'k', 0, 0, 0, 4, b'l', b'o', b'n', b'g']);
}

#[test]
fn the_bytes_of_changes_are_golden() {
    let key = Bytes::from_static(b"k");
    let head = |number: u8| vec![number, 0, 0, 0, 1, b'k'];
    let (new, prev) = (Some(image(b"vw")), Some(image(b"vw")));
    let created = Change { key: key.clone(), new, prev: None, gone: None, turn: 5 };
    golden(&created, &[&head(1), IMAGE, &[0, 0]].concat());
    let position = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2];
    let again = Change { gone: Some(POSITION), ..created.clone() };
    golden(&again, &[&head(1), IMAGE, &[0, 1], &position].concat());
    let changed = Change { prev: prev.clone(), ..created };
    golden(&changed, &[&head(1), IMAGE, &[1], IMAGE].concat());
    let deleted = Change { key, new: None, prev, gone: None, turn: 6 };
    let bytes = [&head(2), &[6][..], IMAGE].concat();
    golden(&deleted, &bytes);
    golden(&Change::restore(), &[3, 0, 0, 0, 0]);
    assert!(Change::from_bytes(Bytes::from_static(&[3, 0, 0, 0, 1, b'k'])).is_err());
    golden(&Gone { at: POSITION, turn: 7 }, &[&position[..], &[7]].concat());
    assert_eq!(Change::peek(&bytes), Some((&b"k"[..], false)));
    assert_eq!(Change::peek(&[1, 0, 0, 0, 9, b'k']), None);
}

#[test]
fn the_bytes_of_leases_and_meta_are_golden() {
    golden(&LeaseRow { ttl: Duration::from_secs(1) }, &[0, 0, 0, 0, 0, 0, 0x03, 0xe8]);
    golden(&Format { schema: 1, codec: 2 }, &[0, 1, 0, 2]);
    let log = [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2];
    let membership = Membership { position: LOG, members: "m".into() };
    golden(&membership, &[&log[..], &[0, 0, 0, 1, b'm']].concat());
    let head = Head {
        applied: Some(LOG),
        revision: Revision::from(5),
        compact_revision: Revision::from(4),
        keys: 3,
        lease_chosen: 2,
        client_chosen: 8,
        clients: 7,
        client_age: 6,
        ages: Ages([5, 5, 4, 1, 0, 0, 0, 0, 0, 0]),
        is_short_of_room: true,
        rows_hash: 1,
    };
    assert!(head.is_possible());
    let numbers = [5u64, 4, 3, 2, 8, 7, 6, 5, 5, 4, 1, 0, 0, 0, 0, 0, 0];
    let numbers = numbers.map(u64::to_be_bytes).concat();
    golden(&head, &[&[1], &log[..], &numbers, &[1], &1u128.to_be_bytes()].concat());
    for ages in [[6; AGES], [4, 5, 0, 0, 0, 0, 0, 0, 0, 0]] {
        assert!(!Head { ages: Ages(ages), ..head }.is_possible());
    }
    assert!(!Head { clients: 9, ..head }.is_possible());
    let answers = vec![(2, Bytes::from_static(b"x")), (3, Bytes::new())];
    let row = ClientRow { floor: 2, seen: 1, answers };
    assert!(row.is_possible());
    let answers =
        [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, b'x', 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0];
    let numbers = [2u64, 1].map(u64::to_be_bytes).concat();
    golden(&row, &[&numbers[..], &answers].concat());
    assert!(!ClientRow { floor: 3, ..row.clone() }.is_possible(), "an answer below the floor");
    let twice = [row.answers[0].clone(), row.answers[0].clone()].into();
    assert!(!ClientRow { answers: twice, ..row }.is_possible());
}

#[test]
fn rows_that_cannot_be_are_refused() {
    for (table, key, row) in [
        (Table::History, &b"short"[..], &[][..]),
        (Table::History, b"k\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0", b"content"),
        (Table::Attachments, b"short", &[]),
        (Table::Dedup, b"anything", &[]),
        (Table::Meta, b"unknown", &[]),
    ] {
        assert!(check_row(table, key, row).is_err(), "{table:?}");
    }
    let displaced = image(b"").seal(b"k");
    assert!(check_row(Table::Latest, b"k", &displaced).is_ok());
    assert!(check_row(Table::Latest, b"l", &displaced).is_err());
    let wrong_key = LeaseRow { ttl: Duration::ZERO }.seal(b"short");
    assert!(check_row(Table::Leases, b"short", &wrong_key).is_err());
}
