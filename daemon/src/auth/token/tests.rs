//! Tokens as OpenSSL and PyJWT see them, and what is not one.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

const SECRET: &[u8; 32] = b"\x00\x01 a key of just thirty-two byte";
const HOUR: Duration = Duration::from_secs(3600);

fn key() -> TokenKey {
    TokenKey::new(SECRET).unwrap()
}

fn now() -> Timestamp {
    "2025-10-08T12:00:00Z".parse().unwrap()
}

fn later(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() + seconds).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a program says to `input`.
fn filter(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}; run scripts/setup --test");
    output.stdout
}

/// HMAC-SHA256 by OpenSSL.
fn openssl(text: &[u8]) -> Vec<u8> {
    let key = format!("hexkey:{}", hex(SECRET));
    let args = [
        "dgst", "-sha256", "-mac", "HMAC", "-macopt", &key, "-binary",
    ];
    filter("openssl", &args, text)
}

/// A token of any header and claims, signed by OpenSSL.
fn forge(header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let signature = openssl(signed.as_bytes());
    format!("{signed}.{}", BASE64.encode(signature))
}

const OURS: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

fn claims(iat: i64, exp: i64) -> String {
    let (iat, exp) = (later(iat).as_second(), later(exp).as_second());
    format!(r#"{{"sub":"7","name":"anna","gen":3,"jti":"j","iat":{iat},"exp":{exp}}}"#)
}

#[test]
fn a_token_says_who_it_was_made_for_until_it_expires() {
    let (token, made) = key().issue(7, "ann\"ä", 3, HOUR, now()).unwrap();
    let read = key().verify(&token, later(3599)).unwrap();
    assert_eq!(read, made);
    assert_eq!(
        (read.user_id(), &*read.name, read.generation),
        (7, "ann\"ä", 3)
    );
    assert_eq!(read.exp, later(3600).as_second());
    assert_eq!(Uuid::parse_str(&read.jti).unwrap().get_version_num(), 4);
    assert_eq!(key().verify(&token, later(3600)), Err(Refusal::Expired));
    assert_eq!(key().verify(&token, later(-60)).unwrap(), made);
    assert_eq!(key().verify(&token, later(-61)), Err(Refusal::NotOurs));
    let other = TokenKey::new(&[1; 32]).unwrap();
    assert_eq!(other.verify(&token, now()), Err(Refusal::NotOurs));
    let longest = key().issue(i64::MAX, &"\"".repeat(64), i64::MAX, HOUR, now());
    assert!(longest.is_ok());
}

#[test]
fn openssl_agrees() {
    let (token, _) = key().issue(7, "anna", 3, HOUR, now()).unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    assert_eq!(
        BASE64.decode(signature).unwrap(),
        openssl(signed.as_bytes())
    );
    assert_eq!(BASE64.encode(OURS), HEADER);
    let foreign = forge(OURS, &claims(0, 10));
    assert_eq!(key().verify(&foreign, now()).unwrap().user_id(), 7);
    assert_eq!(key().csrf("j"), hex(&openssl(b"csrf:j")));
}

#[test]
fn pyjwt_agrees() {
    let (token, made) = key().issue(7, "anna", 3, HOUR, Timestamp::now()).unwrap();
    let script = format!(
        "import jwt, sys
key = bytes.fromhex('{}')
claims = jwt.decode(sys.stdin.read(), key, algorithms=['HS256'])
assert claims['sub'] == '7' and claims['name'] == 'anna' and claims['gen'] == 3
print(jwt.encode(claims, key, algorithm='HS256'), end='')",
        hex(SECRET)
    );
    let theirs = filter("/usr/bin/python3", &["-c", &script], token.as_bytes());
    let theirs = String::from_utf8(theirs).unwrap();
    assert_eq!(key().verify(&theirs, Timestamp::now()).unwrap(), made);
}

#[test]
fn what_is_not_ours_is_refused() {
    let (token, _) = key().issue(7, "anna", 3, HOUR, now()).unwrap();
    let good = claims(0, 10);
    key().verify(&forge(OURS, &good), now()).unwrap();
    let parts: Vec<&str> = token.split('.').collect();
    let none = BASE64.encode(r#"{"alg":"none","typ":"JWT"}"#);
    let mut refused = vec![
        String::new(),
        "..".into(),
        ".".repeat(500),
        token.replace('.', ""),
        format!("{token}."),
        format!(".{token}"),
        format!("{token}="),
        format!("{token} "),
        format!("Bearer {token}"),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}", parts[0], parts[1]),
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{}.{}.{}.{}", parts[0], parts[1], parts[1], parts[2]),
        "ä".repeat(100),
        "x".repeat(1 << 20),
        // Correctly signed, with another header or other claims.
        forge(r#"{"alg":"none","typ":"JWT"}"#, &good),
        forge(r#"{"alg":"HS512","typ":"JWT"}"#, &good),
        forge(r#"{"alg":"HS256"}"#, &good),
        forge(r#"{"typ":"JWT","alg":"HS256"}"#, &good),
        forge(
            r#"{"alg":"HS256","typ":"JWT","kid":"../../dev/null"}"#,
            &good,
        ),
        forge(OURS, ""),
        forge(OURS, "{}"),
        forge(OURS, "[1]"),
        forge(OURS, &"[".repeat(500)),
        forge(OURS, &good.replace(r#""7""#, "7")),
        forge(OURS, &good.replace(r#""7""#, r#""-7""#)),
        forge(OURS, &good.replace(r#""7""#, r#""x""#)),
        forge(OURS, &good.replace(r#""gen":3,"#, "")),
        forge(OURS, &good.replace(r#""gen":3"#, r#""gen":3,"gen":4"#)),
        forge(
            OURS,
            &good.replace(r#""gen":3"#, r#""gen":3,"role":"admin""#),
        ),
        forge(OURS, &claims(61, 100)),
    ];
    // Each byte, changed by one bit.
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] ^= 1;
        refused.extend(String::from_utf8(bytes));
    }
    for token in refused {
        assert_eq!(
            key().verify(&token, now()),
            Err(Refusal::NotOurs),
            "{token}"
        );
    }
    assert_eq!(
        key().verify(&forge(OURS, &claims(-10, 0)), now()),
        Err(Refusal::Expired)
    );
}

#[test]
fn a_forged_request_does_not_know_the_word() {
    let word = key().csrf("j");
    assert_eq!(word.len(), 64);
    assert!(key().csrf_matches("j", &word));
    let upper = word.to_uppercase();
    for wrong in [
        "",
        word.strip_prefix(|_: char| true).unwrap(),
        word.get(..62).unwrap(),
        &format!("{word}00"),
        &upper,
        &"0".repeat(64),
        "ä",
    ] {
        assert!(!key().csrf_matches("j", wrong), "{wrong}");
    }
    assert!(!key().csrf_matches("k", &word));
    assert!(!TokenKey::new(&[1; 32]).unwrap().csrf_matches("j", &word));
}

#[test]
fn the_key_is_made_once_and_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    // Many start at once; all have the same key.
    let tokens: Vec<String> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let key = TokenKey::load(dir.path()).unwrap();
                    key.issue(7, "anna", 3, HOUR, now()).unwrap().0
                })
            })
            .collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect()
    });
    let again = TokenKey::load(dir.path()).unwrap();
    for token in tokens {
        again.verify(&token, now()).unwrap();
    }
    let names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, [KEY_FILE]);
    let path = dir.path().join(KEY_FILE);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o7777), (32, 0o600));
    let another = tempfile::tempdir().unwrap();
    TokenKey::load(another.path()).unwrap();
    assert_ne!(
        fs::read(&path).unwrap(),
        fs::read(another.path().join(KEY_FILE)).unwrap()
    );

    let refused = || {
        let error = TokenKey::load(dir.path()).err().unwrap().to_string();
        assert!(error.contains("token.key: "), "{error}");
        error
    };
    for mode in [0o640, 0o604, 0o620, 0o666] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert!(refused().contains(&format!("others may read it (mode {mode:04o})")));
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    for size in [0, 31, 33, 100_000] {
        fs::write(&path, vec![b'x'; size]).unwrap();
        let error = refused();
        assert!(
            error.contains("does not hold 32 bytes") && !error.contains("xxx"),
            "{error}"
        );
    }
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(another.path().join(KEY_FILE), &path).unwrap();
    assert!(refused().contains("symbolic link"));
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    assert!(refused().contains("not a regular file"));
    let missing = TokenKey::load(&dir.path().join("none")).err().unwrap();
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
}
