//! Blocks: bytes as sectors, each of which tells whether it was written, and whether it has changed since.
//!
//! A disk writes a sector of 512 bytes whole or not at all, and promises nothing about several. So what is written at once,
//! a *batch*, is cut into blocks of that size, and each says where it belongs. After a loss of power a batch that was not
//! synced may lack any of its blocks; a block that is there and wrong was changed afterwards, and that is damage, also in
//! the last batch of all.
//!
//! ```text
//! block   crc32c: u32 ++ segment: u32 ++ batch: u32 ++ length: u16 ++ edges: u8 ++ 0 ++ length bytes ++ zeros
//!         the sum is over the number of the block in its file, and everything behind the sum
//! edges   1 the first of its batch, 2 the last, 3 both, 0 neither; all but the last are full
//!
//! batch 7   ┌ 7 first ┬ 7 ┬ 7 last ┐      batch 8   ┌ 8 both ┐
//! ```
//!
//! Files are used again, so that behind what was written there may be what an older segment had there: it has the number
//! of that segment, and is as good as nothing.

/// What a disk writes whole.
pub(super) const BLOCK_BYTES: usize = 512;
/// What of it is left for what is to be kept.
pub(super) const ROOM: usize = BLOCK_BYTES - HEAD;

const HEAD: usize = 16;
const SUM: usize = 4;

const FIRST: u8 = 1;
const LAST: u8 = 2;

/// What stands in the place of a block.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Block<'a> {
    /// Nothing was ever written there.
    Unwritten,
    Written(Written<'a>),
    /// It is not what was written.
    Damaged,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Written<'a> {
    pub(super) segment: u32,
    pub(super) batch: u32,
    pub(super) is_first: bool,
    pub(super) is_last: bool,
    pub(super) content: &'a [u8],
}

/// How many blocks a batch of so many bytes takes.
pub(super) fn count(bytes: usize) -> usize {
    bytes.div_ceil(ROOM).max(1)
}

/// Appends the blocks of a batch, of which the first has the number `number` in its file.
pub(super) fn write(segment: u32, batch: u32, number: u32, content: &[u8], out: &mut Vec<u8>) {
    let count = count(content.len());
    out.reserve(count * BLOCK_BYTES);
    for (index, number) in (0..count).zip(number..) {
        let piece = &content[index * ROOM..content.len().min((index + 1) * ROOM)];
        let first = if index == 0 { FIRST } else { 0 };
        let last = if index + 1 == count { LAST } else { 0 };
        let begin = out.len();
        out.extend_from_slice(&[0; SUM]);
        out.extend_from_slice(&segment.to_be_bytes());
        out.extend_from_slice(&batch.to_be_bytes());
        out.extend_from_slice(&(piece.len() as u16).to_be_bytes());
        out.extend_from_slice(&[first | last, 0]);
        out.extend_from_slice(piece);
        out.resize(begin + BLOCK_BYTES, 0);
        let sum = sum(number, &out[begin..]);
        out[begin..begin + SUM].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Looks at the block with this number in its file.
pub(super) fn read(number: u32, block: &[u8; BLOCK_BYTES]) -> Block<'_> {
    if *block == [0; BLOCK_BYTES] {
        return Block::Unwritten;
    }
    parse(number, block).map_or(Block::Damaged, Block::Written)
}

fn parse(number: u32, block: &[u8; BLOCK_BYTES]) -> Option<Written<'_>> {
    let (told, rest) = block.split_first_chunk()?;
    if u32::from_be_bytes(*told) != sum(number, block) {
        return None;
    }
    let (segment, rest) = rest.split_first_chunk()?;
    let (batch, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let ([edges, 0], rest) = rest.split_first_chunk()? else { return None };
    let length = usize::from(u16::from_be_bytes(*length));
    let (content, zeros) = rest.split_at_checked(length)?;
    let is_last = edges & LAST != 0;
    let is_right = edges & !(FIRST | LAST) == 0
        && (is_last || zeros.is_empty())
        && zeros.iter().all(|byte| *byte == 0);
    is_right.then_some(Written {
        segment: u32::from_be_bytes(*segment),
        batch: u32::from_be_bytes(*batch),
        is_first: edges & FIRST != 0,
        is_last,
        content,
    })
}

/// The sum of a block, which knows its place, so that no two of them can be mistaken for each other.
fn sum(number: u32, block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_be_bytes()), &block[SUM..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(bytes: &[u8]) -> Vec<[u8; BLOCK_BYTES]> {
        bytes.as_chunks::<BLOCK_BYTES>().0.to_vec()
    }

    #[test]
    fn a_batch_comes_back_from_its_blocks() {
        for length in [0, 1, ROOM - 1, ROOM, ROOM + 1, 3 * ROOM, 10_000] {
            let content: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
            let mut bytes = Vec::new();
            write(3, 9, 5, &content, &mut bytes);
            let blocks = blocks(&bytes);
            assert_eq!(blocks.len(), count(length));
            let mut again = Vec::new();
            for (index, block) in blocks.iter().enumerate() {
                let Block::Written(it) = read(5 + index as u32, block) else { panic!("{length}") };
                assert_eq!((it.segment, it.batch), (3, 9));
                assert_eq!((it.is_first, it.is_last), (index == 0, index + 1 == blocks.len()));
                again.extend_from_slice(it.content);
            }
            assert_eq!(again, content);
        }
    }

    #[test]
    fn every_bit_of_a_block_and_its_place_count() {
        let mut bytes = Vec::new();
        write(1, 1, 0, b"content", &mut bytes);
        let block = blocks(&bytes)[0];
        assert_eq!(read(1, &block), Block::Damaged, "in another place");
        assert_eq!(read(0, &[0; BLOCK_BYTES]), Block::Unwritten);
        for bit in 0..BLOCK_BYTES * 8 {
            let mut changed = block;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(0, &changed), Block::Damaged, "bit {bit}");
        }
        let mut zeros = [0; BLOCK_BYTES];
        zeros[100] = 1;
        assert_eq!(read(0, &zeros), Block::Damaged);
    }

    #[test]
    fn the_bytes_of_a_block_are_golden() {
        let mut bytes = Vec::new();
        write(0x0102, 0x0304, 7, b"ab", &mut bytes);
        assert_eq!(bytes[4..20], [0, 0, 1, 2, 0, 0, 3, 4, 0, 2, 3, 0, b'a', b'b', 0, 0]);
        let covered = [&7u32.to_be_bytes()[..], &bytes[4..]].concat();
        assert_eq!(bytes[..4], crc32c::crc32c(&covered).to_be_bytes());
    }
}
