//! Who may do what: roles and grants, tokens, cookies, and how often one may guess.

use serde_json::{Value, json};

use crate::support::http::{Api, PASSWORD, Session};
use crate::support::{shell, wait_for};
use crate::{Slow, many};
use std::time::Duration;

fn api() -> Api {
    let api = Api::with("", |lab| many(lab, 2));
    api.user("olga", &["--role", "operator", "--vm", "vm0"]);
    api.user("otto", &["--role", "operator", "--vm", "vm1"]);
    api.user("vera", &["--role", "viewer", "--vm", "vm0"]);
    api
}

fn names(list: &Value, of: &str) -> Vec<String> {
    let all = list[of].as_array().unwrap();
    all.iter()
        .map(|each| each["vm_name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_user_sees_and_takes_only_what_is_granted() {
    let api = api();
    let (admin, olga, otto, vera) = (
        api.login("admin"),
        api.login("olga"),
        api.login("otto"),
        api.login("vera"),
    );
    let (b0, b1) = (&admin.backups("vm0")[0], &admin.backups("vm1")[0]);
    let (m0, m1) = (&olga.mount(b0, 0), &admin.mount(b1, 0));

    for who in [&olga, &vera] {
        assert_eq!(
            names(&who.get("/api/v1/vm-contexts").ok(), "vm_contexts"),
            ["vm0"]
        );
        assert_eq!(names(&who.get("/api/v1/backups").ok(), "backups"), ["vm0"]);
        assert_eq!(
            names(&who.get("/api/v1/restore/mounts").ok(), "mounts"),
            ["vm0"]
        );
        // What is not theirs, wherever it is named.
        for path in [
            "vm-contexts/vm1".to_owned(),
            "vm-contexts/vm1/disks".to_owned(),
            "backups?vm_name=vm1".to_owned(),
            format!("backups/{b1}"),
            "backups/chain?vm_name=vm1".to_owned(),
            format!("restore/{m1}"),
            format!("restore/{m1}/files?path=/"),
            format!("restore/{m1}/file-info?path=/etc/hostname"),
            format!("restore/{m1}/download?path=/etc/hostname"),
            format!("restore/{m1}/download-directory?path=/etc"),
            format!("restore/{m1}/size?path=/etc"),
            "audit".to_owned(),
        ] {
            let answer = who.get(&format!("/api/v1/{path}"));
            assert_eq!(answer.status, 403, "{path}: {}", answer.text());
            answer.refused(403);
        }
        who.delete(&format!("/api/v1/restore/{m1}")).refused(403);
        who.try_mount(b1, 0).refused(403);
    }
    // A viewer looks, and takes nothing.
    vera.get(&format!("/api/v1/restore/{m0}")).ok();
    vera.get(&format!("/api/v1/restore/{m0}/files?path=/etc"))
        .ok();
    vera.get(&format!(
        "/api/v1/restore/{m0}/file-info?path=/etc/hostname"
    ))
    .ok();
    for path in [
        "download?path=/etc/hostname",
        "download-directory?path=/etc",
    ] {
        vera.get(&format!("/api/v1/restore/{m0}/{path}"))
            .refused(403);
    }
    vera.try_mount(b0, 0).refused(403);
    vera.delete(&format!("/api/v1/restore/{m0}")).refused(403);
    let file = olga.get(&format!("/api/v1/restore/{m0}/download?path=/etc/hostname"));
    assert_eq!((file.status, file.text().as_str()), (200, "vm0\n"));

    // Running downloads.
    let mut slow = Slow::download(&admin, m1);
    let running = |who: &Session<'_>| who.get("/api/v1/restore/downloads").ok();
    assert_eq!(running(&olga)["count"], 0);
    assert_eq!(running(&otto)["count"], 1);
    let id = running(&admin)["downloads"][0]["download_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/api/v1/restore/downloads/{id}");
    olga.delete(&path).refused(403);
    otto.delete(&path).refused(403);
    assert_eq!(slow.ended(), None);
    admin.delete(&path).ok();
    wait_for("the end of the download", Duration::from_secs(60), || {
        slow.ended() == Some(false)
    });
    admin.delete(&path).refused(404);

    // What was refused stands in the record.
    let denied = || {
        let list = admin.get("/api/v1/audit?action=denied&limit=1000").ok();
        list["records"].as_array().unwrap().clone()
    };
    wait_for("the records", Duration::from_secs(5), || {
        denied().len() >= 34
    });
    let mine: Vec<Value> = denied()
        .into_iter()
        .filter(|r| r["user"] == "olga")
        .collect();
    assert!(
        mine.iter()
            .all(|r| r["outcome"] == "refused" && r["address"] == "127.0.0.1")
    );
    let said = |part: &str| {
        mine.iter()
            .any(|r| r["vm_name"] == "vm1" && r["detail"].as_str().unwrap().contains(part))
    };
    assert!(
        said("/download:") && said("DELETE") && said("POST /api/v1/restore/mount"),
        "{mine:#?}"
    );
}

#[test]
fn changes_count_at_once() {
    let api = api();
    let (olga, vera, otto) = (api.login("olga"), api.login("vera"), api.login("otto"));
    let path = "/api/v1/vm-contexts/vm1";
    let user = |args: &[&str]| api.lab.sendense_ok([&["user"], args].concat());
    olga.get(path).refused(403);
    user(&["grant", "olga", "vm1"]);
    olga.get(path).ok();
    user(&["grant", "olga", "vm1", "--revoke"]);
    olga.get(path).refused(403);
    user(&["grant", "olga", "--all-vms"]);
    olga.get(path).ok();
    // Another password, another role, no user any more: the tokens that are out end.
    api.given(
        "another password 123",
        ["user", "passwd", "olga", "--password-stdin"].into_iter(),
    );
    olga.get(path).refused(401);
    api.try_login("olga", PASSWORD).refused(401);
    api.try_login("olga", "another password 123").ok();
    user(&["grant", "vera", "--role", "operator"]);
    vera.get("/api/v1/auth/me").refused(401);
    assert_eq!(
        api.login("vera").get("/api/v1/auth/me").ok()["role"],
        "operator"
    );
    user(&["remove", "otto"]);
    otto.get("/api/v1/auth/me").refused(401);
    // One of the same name is another one.
    api.user("otto", &["--role", "admin"]);
    otto.get("/api/v1/auth/me").refused(401);
    // Logging out ends one token and no other.
    let (one, two) = (api.login("otto"), api.login("otto"));
    one.post("/api/v1/auth/logout", &json!({})).ok();
    one.get("/api/v1/auth/me").refused(401);
    two.get("/api/v1/auth/me").ok();
}

#[test]
fn browsers_have_a_cookie() {
    let api = api();
    let answer = api.try_login("olga", PASSWORD);
    let cookie = answer.header("set-cookie").unwrap().to_owned();
    let body = answer.ok();
    let token = body["token"].as_str().unwrap();
    let csrf = format!("X-CSRF-Token: {}", body["csrf_token"].as_str().unwrap());
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    assert_eq!(pair, format!("sendense_session={token}"));
    let attributes: Vec<&str> = attributes.split("; ").collect();
    for wanted in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(attributes.contains(&wanted), "{cookie}");
    }
    // There is no TLS here.
    assert!(!attributes.contains(&"Secure"), "{cookie}");

    let me = || api.get("/api/v1/auth/me").cookie(token);
    assert_eq!(me().send().ok()["username"], "olga");
    for (site, status) in [
        ("same-origin", 200),
        ("none", 200),
        ("cross-site", 403),
        ("same-site", 403),
        ("x", 403),
    ] {
        let answer = me().header(&format!("Sec-Fetch-Site: {site}")).send();
        assert_eq!(answer.status, status, "{site}");
    }
    // What changes something needs the proof on top.
    let mount = || {
        let backup = &api.login("olga").backups("vm0")[0];
        let body = json!({"backup_id": backup, "disk_index": 0});
        api.post("/api/v1/restore/mount", &body).cookie(token)
    };
    for header in ["X-CSRF-Token:", "X-CSRF-Token: x", "X-Other: y"] {
        assert!(
            mount()
                .header(header)
                .send()
                .refused(403)
                .contains("X-CSRF-Token")
        );
    }
    let others = api.login("olga").csrf;
    mount()
        .header(&format!("X-CSRF-Token: {others}"))
        .send()
        .refused(403);
    mount()
        .header(&csrf)
        .header("Sec-Fetch-Site: cross-site")
        .send()
        .refused(403);
    let id = mount()
        .header(&csrf)
        .header("Sec-Fetch-Site: same-origin")
        .send()
        .ok();
    let path = format!("/api/v1/restore/{}", id["mount_id"].as_str().unwrap());
    let delete = || api.request("DELETE", &path).cookie(token);
    delete().send().refused(403);
    // As a link on a page gets a file: by the cookie alone.
    let file = api
        .get(&format!("{path}/download?path=/etc/hostname"))
        .cookie(token)
        .send();
    assert_eq!((file.status, file.text().as_str()), (200, "vm0\n"));
    delete().header(&csrf).send().ok();

    // What another service of this host calls by the same name keeps nobody out.
    me().header("Cookie: sendense_session=x").send().ok();
    let two = format!("Cookie: sendense_session=x; sendense_session={token}");
    api.get("/api/v1/auth/me").header(&two).send().ok();

    // A token in the address is none.
    api.get(&format!("/api/v1/auth/me?token={token}"))
        .send()
        .refused(401);
    // A header goes first, also a bad one; logging out takes the cookie away.
    me().header("Authorization: Bearer nonsense")
        .send()
        .refused(401);
    me().header("Authorization: Basic b2xnYTp4")
        .send()
        .refused(401);
    let logout = api.request("POST", "/api/v1/auth/logout").cookie(token);
    logout.send().refused(403);
    let answer = logout.header(&csrf).send();
    let cookie = answer.header("set-cookie").unwrap();
    assert!(
        cookie.starts_with("sendense_session=;") && cookie.contains("Max-Age=0"),
        "{cookie}"
    );
    me().send().refused(401);
}

/// Tokens that others made, by another program: PyJWT.
#[test]
fn forged_tokens_are_refused() {
    let api = api();
    let olga = api.login("olga");
    let script = format!(
        r#"
import base64, json, jwt, sys
token = {:?}
key = open({:?}, 'rb').read()
claims = jwt.decode(token, key, algorithms=['HS256'])
part = lambda data: base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b'=').decode()
head, payload, signature = token.split('.')
print(jwt.encode(claims | {{'exp': 1}}, key, 'HS256'))
print(jwt.encode(claims | {{'iat': claims['iat'] + 7200, 'exp': claims['exp'] + 7200}}, key, 'HS256'))
print(jwt.encode(claims | {{'sub': '1'}}, b'another key another key another key', 'HS256'))
print(jwt.encode(claims, None, 'none'))
print(part({{'alg': 'none'}}) + '.' + payload + '.')
print(part({{'alg': 'none', 'typ': 'JWT'}}) + '.' + payload + '.' + signature)
print(jwt.encode(claims, key, 'HS512'))
print(head + '.' + part(claims | {{'sub': '1'}}) + '.' + signature)
print(head + '.' + payload + '.')
print(head + '.' + payload)
print(token[:-4] + 'AAAA')
print(token + '=')
print(token + '.' + signature)
print(jwt.encode(claims | {{'gen': claims['gen'] + 1}}, key, 'HS256'))
print(jwt.encode(claims | {{'sub': '999'}}, key, 'HS256'))
print(jwt.encode(claims | {{'sub': '-1'}}, key, 'HS256'))
print('x' * 5000)
"#,
        olga.token,
        api.lab.path("state/token.key")
    );
    let file = api.lab.path("forge.py");
    std::fs::write(&file, script).unwrap();
    let forged = shell(&format!("/usr/bin/python3 {file:?}"));
    assert_eq!(forged.lines().count(), 17);
    for token in forged.lines() {
        api.get("/api/v1/auth/me").token(token).send().refused(401);
        api.get("/api/v1/auth/me").cookie(token).send().refused(401);
    }
    let expired = forged.lines().next().unwrap();
    let said = api
        .get("/api/v1/auth/me")
        .token(expired)
        .send()
        .refused(401);
    assert!(said.contains("expired"), "{said}");
    for header in [
        "Authorization:",
        "Authorization: Bearer",
        "Authorization: Bearer ",
    ] {
        api.get("/api/v1/auth/me")
            .header(header)
            .send()
            .refused(401);
    }
    let header = format!("Authorization: bearer {}", olga.token);
    api.get("/api/v1/auth/me").header(&header).send().ok();
}

#[test]
fn a_token_lives_as_long_as_configured() {
    let mut api = Api::prepare("token_lifetime = \"60s\"", false);
    many(&api.lab, 1);
    api.start();
    let answer = api.try_login("admin", PASSWORD);
    assert!(answer.header("set-cookie").unwrap().contains("Max-Age=60"));
    let expires: jiff::Timestamp = answer.ok()["expires_at"].as_str().unwrap().parse().unwrap();
    let left = expires.as_second() - jiff::Timestamp::now().as_second();
    assert!((57..=60).contains(&left), "{left}");
}

#[test]
fn guessing_is_limited() {
    let api = api();
    let from = |address: &str, name: &str, password: &str| {
        let body = json!({ "username": name, "password": password });
        api.post("/api/v1/auth/login", &body)
            .with(["--interface", address])
            .send()
    };
    for _ in 0..5 {
        from("127.0.0.2", "olga", "wrong").refused(401);
    }
    let answer = from("127.0.0.2", "olga", PASSWORD);
    let said = answer.refused(429);
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!(
        (800..=900).contains(&wait) && said.contains(&wait.to_string()),
        "{wait}: {said}"
    );
    // Nobody else is kept out, and neither is olga elsewhere.
    from("127.0.0.2", "vera", PASSWORD).ok();
    from("127.0.0.3", "olga", PASSWORD).ok();
    // An account, from wherever: 20 in all.
    for n in 0..15 {
        from(&format!("127.0.1.{}", n / 4 + 1), "olga", "wrong").refused(401);
    }
    from("127.0.1.9", "olga", PASSWORD).refused(429);
    // An address, whatever the account: 30.
    for n in 0..25 {
        from("127.0.0.2", &format!("nobody{n}"), "wrong").refused(401);
    }
    from("127.0.0.2", "vera", PASSWORD).refused(429);
    from("127.0.0.4", "vera", PASSWORD).ok();
    // Who asks is told by the connection, not by what the client says.
    let body = json!({ "username": "vera", "password": PASSWORD });
    let claimed = api
        .post("/api/v1/auth/login", &body)
        .with(["--interface", "127.0.0.2"]);
    claimed
        .header("X-Forwarded-For: 127.0.0.9")
        .send()
        .refused(429);
    let failed = api
        .lab
        .sendense_ok(["audit", "--json", "--action", "login_failed"]);
    assert!(
        failed.contains("\"127.0.1.2\"") && failed.contains("\"nobody7\""),
        "{failed}"
    );
}
