//! One row, as any table may have it.

use super::super::keys;
use super::super::records::{
    Change, Format, Gone, Head, Image, LargeValue, LeaseRow, Membership, MetaRow, Record, Table,
    check_row, content, sealed,
};

/// Rows and their keys.
pub(crate) fn tables(input: &[u8]) {
    let Some((&[table, how, high, low], rest)) = input.split_first_chunk() else { return };
    let Some(table) = Table::ALL.into_iter().find(|it| *it as u8 == table) else { return };
    let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
    let (key, row) = rest.split_at(length);
    read_key(key);
    let row = if how == 1 { sealed(table, key, row) } else { row.to_vec() };
    if table == Table::Events
        && let Ok(content) = content(table, key, &row)
    {
        peek(key, content);
    }
    if check_row(table, key, &row).is_ok() {
        comes_back(table, key, &row);
    }
}

fn read_key(key: &[u8]) {
    if let Some((user_key, at)) = keys::parse_history(key) {
        assert_eq!(keys::history(&user_key, at), key);
    }
    if let Some(at) = keys::parse_position(key) {
        assert_eq!(keys::position(at), key);
    }
    if let Some((lease, user_key)) = keys::parse_attachment(key) {
        assert_eq!(keys::attachment(lease, user_key), key);
    }
    if let Some(lease) = keys::parse_lease(key) {
        assert_eq!(keys::lease(lease), key);
    }
}

/// The short look at a change sees what the long one does.
fn peek(key: &[u8], content: &[u8]) {
    let peeked = Change::peek(content);
    if let Ok(change) = Change::of_content(key, content) {
        assert_eq!(peeked, Some((&*change.key, change.new.is_some())));
    }
}

/// A row that was believed is what its record is written as.
fn comes_back(table: Table, key: &[u8], row: &[u8]) {
    let written = match table {
        Table::Latest => resealed::<Image>(key, row),
        Table::Gone => resealed::<Gone>(key, row),
        Table::Values => resealed::<LargeValue>(key, row),
        Table::Events => resealed::<Change>(key, row),
        Table::Leases => resealed::<LeaseRow>(key, row),
        Table::Meta if key == Head::KEY => resealed::<Head>(key, row),
        Table::Meta if key == Membership::KEY => resealed::<Membership>(key, row),
        Table::Meta => resealed::<Format>(key, row),
        Table::History | Table::Attachments | Table::Dedup => Vec::new(),
    };
    assert_eq!(written, row);
}

fn resealed<R: Record>(key: &[u8], row: &[u8]) -> Vec<u8> {
    R::open(key, row).expect("it was checked").seal(key)
}

#[cfg(test)]
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let stream = super::snapshot::stream_of_everything();
    let rows = super::snapshot::rows(&stream);
    let mut all = Vec::new();
    for (number, (table, key, row)) in rows.iter().enumerate() {
        // One large value is as good as the other, and the corpus is small.
        if row.len() > 1000 {
            continue;
        }
        let head = |how: u8| {
            let length = (key.len() as u16).to_be_bytes();
            [&[*table, how][..], &length, key].concat()
        };
        let name = Table::ALL[usize::from(*table) - 1].name();
        all.push((format!("{name}-{number}"), [&head(0)[..], row].concat()));
        if let Ok(content) = content(Table::ALL[usize::from(*table) - 1], key, row) {
            let unsealed = [&head(1)[..], content].concat();
            all.push((format!("{name}-{number}-unsealed"), unsealed));
        }
    }
    all.push((
        "ev-of-a-wild-key".to_owned(),
        b"\x04\x01\0\x0c\0\0\0\0\0\0\0\x02\0\0\0\0\x01\xff\xff\xff\xff".to_vec(),
    ));
    all
}
