//! Short names: eight characters and three, in the guest's code page.
//!
//! Which code page that was is not on the volume; 437 is taken, as Linux does.

/// What the bytes from 0x80 on stand for in code page 437.
const HIGH: &str = "\
    ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒ\
    áíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
    αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// Bits of byte 12 of an entry: the name, the extension is shown in lower case.
const LOWER_BASE: u8 = 0x08;
const LOWER_EXTENSION: u8 = 0x10;

/// The character that a byte stands for.
pub(super) fn character(byte: u8) -> char {
    match byte.checked_sub(0x80) {
        None => char::from(byte),
        Some(high) => HIGH.chars().nth(usize::from(high)).unwrap_or('?'),
    }
}

/// In lower case, as far as the code page has the letter.
fn lower(byte: u8) -> char {
    let character = character(byte);
    let mut lower = character.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(letter), None) if letter.is_ascii() || HIGH.contains(letter) => letter,
        _ => character,
    }
}

/// The characters without the spaces at the end.
fn trimmed(bytes: &[u8], lower_case: bool) -> impl Iterator<Item = char> + '_ {
    let end = bytes.iter().rposition(|byte| *byte != b' ');
    bytes
        .iter()
        .take(end.map_or(0, |end| end.saturating_add(1)))
        .map(move |byte| {
            if lower_case {
                lower(*byte)
            } else {
                character(*byte)
            }
        })
}

/// Appends the name that the 11 bytes of an entry stand for, as UTF-16; `case`
/// is byte 12 of the entry.
pub(super) fn push(name: &[u8; 11], case: u8, out: &mut Vec<u16>) {
    let (mut base, extension) = (*name, name.get(8..).unwrap_or_default());
    if let Some(first @ 0x05) = base.first_mut() {
        // 0xE5 would say that the entry is deleted.
        *first = 0xe5;
    }
    let base = base.get(..8).unwrap_or_default();
    let mut push = |character: char| {
        let mut units = [0; 2];
        out.extend_from_slice(character.encode_utf16(&mut units));
    };
    trimmed(base, case & LOWER_BASE != 0).for_each(&mut push);
    let mut extension = trimmed(extension, case & LOWER_EXTENSION != 0).peekable();
    if extension.peek().is_some() {
        push('.');
        extension.for_each(push);
    }
}

/// The checksum that ties long entries to the entry with this name.
pub(super) fn checksum(name: &[u8; 11]) -> u8 {
    name.iter()
        .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// A volume's label, which is 11 bytes without a dot.
pub(super) fn label(name: &[u8; 11]) -> String {
    let mut name = *name;
    if let Some(first @ 0x05) = name.first_mut() {
        *first = 0xe5;
    }
    trimmed(&name, false).collect()
}
