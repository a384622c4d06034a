//! Kinds of files that are compressed already, by the ends of their names.

/// In order.
const PACKED: &[&[u8]] = &[
    b"3gp",
    b"7z",
    b"aac",
    b"ace",
    b"apk",
    b"avi",
    b"avif",
    b"br",
    b"bz2",
    b"cab",
    b"crx",
    b"deb",
    b"docm",
    b"docx",
    b"dotx",
    b"ear",
    b"epub",
    b"esd",
    b"flac",
    b"flv",
    b"gif",
    b"gpg",
    b"gz",
    b"heic",
    b"heif",
    b"ipa",
    b"jar",
    b"jp2",
    b"jpeg",
    b"jpg",
    b"jxl",
    b"lz",
    b"lz4",
    b"lzma",
    b"lzo",
    b"m2ts",
    b"m4a",
    b"m4v",
    b"mkv",
    b"mov",
    b"mp3",
    b"mp4",
    b"mpeg",
    b"mpg",
    b"msix",
    b"nupkg",
    b"odp",
    b"ods",
    b"odt",
    b"oga",
    b"ogg",
    b"ogv",
    b"opus",
    b"png",
    b"pptm",
    b"pptx",
    b"rar",
    b"rpm",
    b"sfx",
    b"snap",
    b"squashfs",
    b"svgz",
    b"tbz2",
    b"tgz",
    b"txz",
    b"tzst",
    b"vsix",
    b"war",
    b"webm",
    b"webp",
    b"whl",
    b"wim",
    b"wma",
    b"wmv",
    b"woff",
    b"woff2",
    b"xlsb",
    b"xlsm",
    b"xlsx",
    b"xz",
    b"zip",
    b"zipx",
    b"zst",
];

/// Whether a file of this name is not worth compressing.
pub(super) fn is_packed(name: &[u8]) -> bool {
    let Some(dot) = name.iter().rposition(|byte| *byte == b'.') else {
        return false;
    };
    let end = name.get(dot.saturating_add(1)..).unwrap_or_default();
    let end = end.to_ascii_lowercase();
    PACKED.binary_search(&end.as_slice()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_name_tells() {
        assert!(PACKED.is_sorted());
        for (name, packed) in [
            (&b"a.jpg"[..], true),
            (b"A.JPG", true),
            (b"x.tar.gz", true),
            (b"gz", false),
            (b"a.", false),
            (b"a.txt", false),
            (b"", false),
        ] {
            assert_eq!(is_packed(name), packed, "{name:?}");
        }
    }
}
