//! Event files for TensorBoard: scalars only.
//!
//! A file is a row of TFRecords, each holding one `Event` message. Both formats are small enough
//! to be written by hand, which spares a protobuf compiler:
//!
//! - TFRecord: length as u64, masked CRC of the length, the bytes, masked CRC of the bytes, all
//!   little-endian (tensorflow `core/lib/io/record_writer.cc`).
//! - `Event`: field 1 `wall_time` (double), 2 `step` (varint), 3 `file_version` (string),
//!   5 `summary`; `Summary`: field 1 `value`, repeated; `Value`: field 1 `tag` (string),
//!   2 `simple_value` (float) (tensorflow `core/util/event.proto`, `core/framework/summary.proto`).

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fs_err::File;

/// Writes one event file.
#[derive(Debug)]
pub(crate) struct EventWriter {
    file: BufWriter<File>,
}

impl EventWriter {
    /// Creates `events.out.tfevents.<seconds>.<name>` in `folder`, which is created if missing.
    ///
    /// TensorBoard reads all event files of a folder in the order of their names, so a resumed
    /// run simply begins another one.
    pub(crate) fn create(folder: &Path, name: &str, now: SystemTime) -> io::Result<Self> {
        fs_err::create_dir_all(folder)?;
        let path = folder.join(format!(
            "events.out.tfevents.{:010}.{name}",
            since_epoch(now).as_secs()
        ));
        let mut writer = Self {
            file: BufWriter::new(File::create(path)?),
        };
        writer.record(&event(now, 0, &field_bytes(3, b"brain.Event:2")))?;
        writer.file.flush()?;
        Ok(writer)
    }

    /// Writes the values of one step and flushes, so that a killed run keeps its curve.
    pub(crate) fn scalars(
        &mut self,
        step: u64,
        now: SystemTime,
        values: &[(&str, f64)],
    ) -> io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut message = field_bytes(1, tag.as_bytes());
            message.push(tag_byte(2, WIRE_FIXED32));
            message.extend((*value as f32).to_le_bytes());
            summary.extend(field_bytes(1, &message));
        }
        self.record(&event(now, step, &field_bytes(5, &summary)))?;
        self.file.flush()
    }

    fn record(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = (bytes.len() as u64).to_le_bytes();
        self.file.write_all(&length)?;
        self.file.write_all(&masked_crc(&length).to_le_bytes())?;
        self.file.write_all(bytes)?;
        self.file.write_all(&masked_crc(bytes).to_le_bytes())
    }
}

/// Protobuf wire types.
const WIRE_VARINT: u8 = 0;
const WIRE_FIXED64: u8 = 1;
const WIRE_BYTES: u8 = 2;
const WIRE_FIXED32: u8 = 5;

fn event(now: SystemTime, step: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag_byte(1, WIRE_FIXED64)];
    bytes.extend(since_epoch(now).as_secs_f64().to_le_bytes());
    bytes.push(tag_byte(2, WIRE_VARINT));
    push_varint(&mut bytes, step);
    bytes.extend(payload);
    bytes
}

fn since_epoch(time: SystemTime) -> Duration {
    // A clock before 1970 is broken; the curve is still drawn over the steps.
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

const fn tag_byte(field: u8, wire: u8) -> u8 {
    (field << 3) | wire
}

fn field_bytes(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![tag_byte(field, WIRE_BYTES)];
    push_varint(&mut message, bytes.len() as u64);
    message.extend(bytes);
    message
}

/// Base 128, least significant group first, the high bit set on all but the last.
fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// CRC-32C, rotated and offset as TFRecord wants it (tensorflow `core/lib/hash/crc32c.h`).
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits the next protobuf field off: number, wire type, payload.
    fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(u8, u64, &'a [u8])> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        }
        if bytes.is_empty() {
            return None;
        }
        let tag = varint(bytes);
        let field = (tag >> 3) as u8;
        let (value, length) = match (tag & 7) as u8 {
            WIRE_VARINT => return Some((field, varint(bytes), &[])),
            WIRE_FIXED64 => (0, 8),
            WIRE_FIXED32 => (0, 4),
            WIRE_BYTES => (0, varint(bytes) as usize),
            other => panic!("unexpected wire type {other}"),
        };
        let (payload, rest) = bytes.split_at(length);
        *bytes = rest;
        Some((field, value, payload))
    }

    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let length_crc = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
            assert_eq!(length_crc, masked_crc(&bytes[..8]));
            let end = 12 + length as usize;
            let crc = u32::from_le_bytes(bytes[end..end + 4].try_into().unwrap());
            assert_eq!(crc, masked_crc(&bytes[12..end]));
            found.push(bytes[12..end].to_vec());
            bytes = &bytes[end + 4..];
        }
        found
    }

    #[test]
    fn the_mask_is_tensorflows() {
        // TensorFlow's own files begin with a record of 24 bytes, hence with these twelve bytes:
        // 18 00 00 00 00 00 00 00 a3 7f 4b 22.
        assert_eq!(masked_crc(&24u64.to_le_bytes()), 0x224b_7fa3);
    }

    #[test]
    fn what_is_written_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let start = UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
        let mut writer = EventWriter::create(folder.path(), "host", start).unwrap();
        let values = [("train/loss", 2.5), ("train/learning_rate", 2e-4)];
        writer.scalars(300, start, &values).unwrap();

        let path = folder.path().join("events.out.tfevents.1700000000.host");
        let records = records(&fs_err::read(path).unwrap());
        assert_eq!(records.len(), 2);

        let mut version = &records[0][..];
        assert_eq!(next_field(&mut version).unwrap().0, 1);
        assert_eq!(next_field(&mut version).unwrap().1, 0);
        assert_eq!(next_field(&mut version).unwrap().2, b"brain.Event:2");

        let mut event = &records[1][..];
        let (_, _, wall_time) = next_field(&mut event).unwrap();
        assert_eq!(
            f64::from_le_bytes(wall_time.try_into().unwrap()),
            1_700_000_000.5
        );
        assert_eq!(next_field(&mut event).unwrap().1, 300);
        let (field, _, mut summary) = next_field(&mut event).unwrap();
        assert_eq!(field, 5);
        for (tag, value) in values {
            let (_, _, mut message) = next_field(&mut summary).unwrap();
            assert_eq!(next_field(&mut message).unwrap().2, tag.as_bytes());
            let (field, _, simple) = next_field(&mut message).unwrap();
            assert_eq!(field, 2);
            assert_eq!(f32::from_le_bytes(simple.try_into().unwrap()), value as f32);
        }
        assert!(summary.is_empty() && event.is_empty());
    }
}
