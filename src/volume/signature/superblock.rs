//! Formats with a superblock at a fixed place in the head.
//!
//! The idea: one small function for each, all on bytes that were read already;
//! the first that recognises its own wins.
#![deny(clippy::arithmetic_side_effects)]

use super::{Signature, lvm_label, utf16};
use crate::volume::head::{array, be16, be32, be64, is, le16, le32, le64};

/// What hides others: LVM physical volumes and LUKS.
pub(super) fn container(bytes: &[u8]) -> Option<Signature> {
    lvm(bytes).or_else(|| luks(bytes))
}

/// File systems and swap.
pub(super) fn probe(bytes: &[u8]) -> Option<Signature> {
    type Probe = fn(&[u8]) -> Option<Signature>;
    const ALL: [Probe; 15] = [
        swap,
        xfs,
        ext,
        reiserfs,
        jfs,
        udf,
        iso9660,
        zfs,
        hfsplus,
        squashfs,
        btrfs,
        f2fs,
        apfs,
        oracleasm,
        luks_second,
    ];
    ALL.into_iter().find_map(|probe| probe(bytes))
}

fn lvm(b: &[u8]) -> Option<Signature> {
    let label = lvm_label(b)?;
    let header = label.checked_add(usize::try_from(le32(b, label.checked_add(20)?)?).ok()?)?;
    let id = b.get(header..header.checked_add(32)?)?;
    let mut uuid = String::new();
    for (index, letter) in id.iter().enumerate() {
        if matches!(index, 6 | 10 | 14 | 18 | 22 | 26) {
            uuid.push('-');
        }
        uuid.push(char::from(*letter));
    }
    Some(Signature {
        uuid,
        ..Signature::new("LVM2_member")
    })
}

fn luks(b: &[u8]) -> Option<Signature> {
    if !is(b, 0, b"LUKS\xba\xbe") {
        return None;
    }
    let label = if be16(b, 6)? == 2 {
        b.get(24..72)?
    } else {
        &[]
    };
    let uuid = String::from_utf8_lossy(&super::text(b.get(168..208)?)).into_owned();
    Some(Signature {
        uuid,
        ..Signature::new("crypto_LUKS").label(label)
    })
}

/// LUKS2 by its second header, which stands at one of several places. Asked
/// last: it outlives a new format at the beginning.
fn luks_second(b: &[u8]) -> Option<Signature> {
    [0x4000, 0x8000, 0x10000].into_iter().find_map(|at: usize| {
        let b = b.get(at..)?;
        let valid = is(b, 0, b"SKUL\xba\xbe") && be64(b, 256)? == u64::try_from(at).ok()?;
        let uuid = String::from_utf8_lossy(&super::text(b.get(168..208)?)).into_owned();
        let found = valid.then(|| Signature::new("crypto_LUKS"))?;
        Some(Signature {
            uuid,
            ..found.label(b.get(24..72)?)
        })
    })
}

fn swap(b: &[u8]) -> Option<Signature> {
    // The magic is the end of the first page, whatever its size.
    let (page, magic) = [4096_usize, 8192, 16384, 32768, 65536]
        .into_iter()
        .find_map(|page| {
            Some((page, array::<10>(b, page.checked_sub(10)?)?)).filter(|(_, magic)| {
                magic == b"SWAPSPACE2"
                    || magic == b"SWAP-SPACE"
                    || magic.starts_with(b"S1SUSPEND")
                    || magic.starts_with(b"S2SUSPEND")
                    || magic.starts_with(b"ULSUSPEND")
                    || magic == b"LINHIB0001"
            })
        })?;
    let kind = if magic.starts_with(b"SWAP") {
        "swap"
    } else {
        "swsuspend"
    };
    let found = Signature::new(kind);
    if &magic == b"SWAP-SPACE" {
        return Some(found);
    }
    let pages = u64::from(le32(b, 1028)?).checked_add(1);
    let found = found.size(pages, u64::try_from(page).ok()?);
    Some(found.uuid(array(b, 1036)).label(b.get(1052..1068)?))
}

fn xfs(b: &[u8]) -> Option<Signature> {
    if !is(b, 0, b"XFSB") {
        return None;
    }
    let block = be32(b, 4)?;
    if !(512..=65536).contains(&block) || !block.is_power_of_two() {
        return None;
    }
    let found = Signature::new("xfs")
        .uuid(array(b, 32))
        .label(b.get(108..120)?);
    Some(found.size(be64(b, 8), u64::from(block)))
}

/// ext2, ext3 and ext4 are told apart by the features that each knows.
fn ext(b: &[u8]) -> Option<Signature> {
    const HAS_JOURNAL: u32 = 0x4;
    const JOURNAL_DEV: u32 = 0x8;
    const IS_64BIT: u32 = 0x80;
    // FILETYPE, META_BG; ext3 also RECOVER.
    const EXT2_INCOMPAT: u32 = 0x2 | 0x10;
    const EXT3_INCOMPAT: u32 = EXT2_INCOMPAT | 0x4;
    // SPARSE_SUPER, LARGE_FILE, BTREE_DIR.
    const RO_COMPAT: u32 = 0x1 | 0x2 | 0x4;

    let sb = b.get(1024..2048)?;
    if le16(sb, 56)? != 0xef53 {
        return None;
    }
    let (compat, incompat, ro) = (le32(sb, 92)?, le32(sb, 96)?, le32(sb, 100)?);
    let kind = if incompat & JOURNAL_DEV != 0 {
        "jbd"
    } else if incompat & !EXT3_INCOMPAT != 0 || ro & !RO_COMPAT != 0 {
        "ext4"
    } else if compat & HAS_JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    };
    let high = if incompat & IS_64BIT != 0 {
        le32(sb, 336)?
    } else {
        0
    };
    let blocks = u64::from(high).checked_shl(32)? | u64::from(le32(sb, 4)?);
    let block = 1024_u64.checked_shl(le32(sb, 24)?.min(16))?;
    let found = Signature::new(kind)
        .uuid(array(sb, 104))
        .label(sb.get(120..136)?);
    Some(found.size(Some(blocks), block))
}

fn reiserfs(b: &[u8]) -> Option<Signature> {
    let sb = b.get(65536..)?;
    let found = [&b"ReIsErFs"[..], b"ReIsEr2Fs", b"ReIsEr3Fs"]
        .iter()
        .any(|m| is(sb, 52, m))
        && le16(sb, 44)? >= 1024;
    let found = found.then(|| Signature::new("reiserfs"))?;
    Some(found.uuid(array(sb, 84)).label(sb.get(100..116)?))
}

fn jfs(b: &[u8]) -> Option<Signature> {
    let sb = b.get(32768..)?;
    let found = is(sb, 0, b"JFS1").then(|| Signature::new("jfs"))?;
    Some(found.uuid(array(sb, 136)).label(sb.get(152..168)?))
}

/// UDF, by its volume recognition sequence (ECMA-167, part 2).
fn udf(b: &[u8]) -> Option<Signature> {
    for at in (32768..65536).step_by(2048) {
        match b.get(at..)?.get(1..6)? {
            b"NSR02" | b"NSR03" => return Some(Signature::new("udf")),
            b"BEA01" | b"CD001" | b"BOOT2" | b"CDW02" => {}
            _ => return None,
        }
    }
    None
}

fn iso9660(b: &[u8]) -> Option<Signature> {
    // Volume descriptors, one for each 2048 bytes, until the terminator.
    let descriptors = b.get(32768..65536)?.chunks_exact(2048);
    let descriptors = descriptors.take_while(|d| is(d, 1, b"CD001") && !is(d, 0, &[255]));
    let primary = descriptors.clone().find(|d| is(d, 0, &[1]))?;
    let joliet = descriptors.into_iter().find(|d| {
        is(d, 0, &[2])
            && [b"%/@", b"%/C", b"%/E"]
                .iter()
                .any(|escape| is(d, 88, *escape))
    });
    let short = super::text(primary.get(40..72)?);
    let long = joliet.map(|d| utf16(d.get(40..72).unwrap_or_default(), u16::from_be_bytes));
    let label = match long {
        // Joliet has room for 16 letters, the older field for 32 in upper case.
        Some(long) if !long.is_empty() => {
            let same = short
                .get(..long.len())
                .is_some_and(|s| s.eq_ignore_ascii_case(&long));
            let tail = if same {
                short.get(long.len()..).unwrap_or_default()
            } else {
                &[]
            };
            [long.as_slice(), tail].concat()
        }
        _ => short,
    };
    // The date of the last change, or else of creation, stands for a UUID.
    let date = [830, 813].into_iter().find_map(|at| {
        let digits: [u8; 16] = array(primary, at)?;
        let set = digits.iter().any(|d| *d != b'0') && digits.iter().all(u8::is_ascii_digit);
        set.then_some(digits)
    });
    let uuid = date.map(|digits| {
        let digits = String::from_utf8_lossy(&digits).into_owned();
        let mut text = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if index >= 4 && index.checked_rem(2) == Some(0) {
                text.push('-');
            }
            text.push(digit);
        }
        text
    });
    let blocks = le32(primary, 80)?;
    let block = le16(primary, 128)?;
    let found = Signature::new("iso9660").size(Some(u64::from(blocks)), u64::from(block));
    Some(Signature {
        label,
        uuid: uuid.unwrap_or_default(),
        ..found
    })
}

/// A member of a ZFS pool, by the name/value list of its first label.
fn zfs(b: &[u8]) -> Option<Signature> {
    let list = b.get(16384..)?;
    // XDR, then the writer's byte order, which XDR does not follow.
    if *list.first()? != 1 || *list.get(1)? > 1 {
        return None;
    }
    let (mut at, mut name, mut guid) = (12_usize, None, None);
    while name.is_none() || guid.is_none() {
        let len = usize::try_from(be32(list, at)?).ok()?;
        let pair = list
            .get(at..at.checked_add(len)?)
            .filter(|pair| !pair.is_empty())?;
        let key_len = usize::try_from(be32(pair, 8)?).ok()?;
        let key = pair.get(12..key_len.checked_add(12)?)?;
        let data = key_len.checked_next_multiple_of(4)?.checked_add(12)?;
        let value = pair.get(data.checked_add(8)?..)?;
        match (key, be32(pair, data)?) {
            (b"name", 9) => {
                let len = usize::try_from(be32(value, 0)?).ok()?;
                name = Some(value.get(4..len.checked_add(4)?)?);
            }
            (b"pool_guid", 8) => guid = Some(be64(value, 0)?),
            _ => {}
        }
        at = at.checked_add(len)?;
    }
    let found = Signature::new("zfs_member").label(name?);
    Some(Signature {
        uuid: guid?.to_string(),
        ..found
    })
}

fn hfsplus(b: &[u8]) -> Option<Signature> {
    let sb = b.get(1024..1536)?;
    // Version 4 is HFS+, version 5 the one that minds upper and lower case.
    let found = (is(sb, 0, b"H+") && be16(sb, 2)? == 4) || (is(sb, 0, b"HX") && be16(sb, 2)? == 5);
    let blocks = u64::from(be32(sb, 44)?);
    found.then(|| {
        let block = be32(sb, 40).map_or(0, u64::from);
        Signature::new("hfsplus").size(Some(blocks), block)
    })
}

fn squashfs(b: &[u8]) -> Option<Signature> {
    let found = is(b, 0, b"hsqs") && le16(b, 28)? >= 4;
    found.then(|| Signature::new("squashfs").size(le64(b, 40), 1))
}

fn btrfs(b: &[u8]) -> Option<Signature> {
    let sb = b.get(65536..)?;
    let found = is(sb, 64, b"_BHRfS_M").then(|| Signature::new("btrfs"))?;
    let found = found.uuid(array(sb, 32)).label(sb.get(299..555)?);
    // What it takes of this device, not of all its devices.
    Some(found.size(le64(sb, 209), 1))
}

fn f2fs(b: &[u8]) -> Option<Signature> {
    let sb = b.get(1024..4096)?;
    if le32(sb, 0)? != 0xf2f5_2010 {
        return None;
    }
    let block = 1_u64.checked_shl(le32(sb, 16)?).unwrap_or(0);
    let found = Signature::new("f2fs")
        .uuid(array(sb, 108))
        .size(le64(sb, 36), block);
    Some(Signature {
        label: utf16(sb.get(124..1148)?, u16::from_le_bytes),
        ..found
    })
}

fn apfs(b: &[u8]) -> Option<Signature> {
    let found = is(b, 32, b"NXSB").then(|| Signature::new("apfs"))?;
    Some(
        found
            .uuid(array(b, 72))
            .size(le64(b, 40), u64::from(le32(b, 36)?)),
    )
}

fn oracleasm(b: &[u8]) -> Option<Signature> {
    is(b, 32, b"ORCLDISK").then(|| Signature::new("oracleasm").label(b.get(40..64).unwrap_or(&[])))
}
