//! A zip archive of one uncompressed file: what Python reads modules from without a place in the image's files.

/// An archive with `content` under `name`.
pub(super) fn of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut sum = flate2::Crc::new();
    sum.update(content);
    let (length, name_length) = (size(content.len()), name.len().min(usize::from(u16::MAX)));
    let mut common = Vec::new();
    // Version 2.0, no flags, stored, midnight of 1980-01-01.
    for value in [20u16, 0, 0, 0, 0x21] {
        common.extend(value.to_le_bytes());
    }
    for value in [sum.sum(), length, length] {
        common.extend(value.to_le_bytes());
    }
    common.extend(u16::try_from(name_length).unwrap_or(u16::MAX).to_le_bytes());
    common.extend(0u16.to_le_bytes());

    let mut archive = Vec::new();
    archive.extend(b"PK\x03\x04");
    archive.extend(&common);
    archive.extend(&name.as_bytes()[..name_length]);
    archive.extend(content);
    let directory = archive.len();
    archive.extend(b"PK\x01\x02");
    archive.extend(20u16.to_le_bytes());
    archive.extend(&common);
    // No comment, disk 0, no attributes, at the archive's beginning.
    archive.extend([0u8; 14]);
    archive.extend(&name.as_bytes()[..name_length]);
    let directory_length = archive.len() - directory;
    archive.extend(b"PK\x05\x06");
    for value in [0u16, 0, 1, 1] {
        archive.extend(value.to_le_bytes());
    }
    archive.extend(size(directory_length).to_le_bytes());
    archive.extend(size(directory).to_le_bytes());
    archive.extend(0u16.to_le_bytes());
    archive
}

fn size(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
