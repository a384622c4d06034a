//! Users, tokens that hold, and the record of what was done.

use super::*;
use jiff::Timestamp;
use std::time::Instant;

const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo";

fn catalog() -> (TempDir, Catalog) {
    let dir = TempDir::new().unwrap();
    let catalog = Catalog::open(&dir.path().join("catalog.db")).unwrap();
    (dir, catalog)
}

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn session(catalog: &Catalog, login: &Login) -> Option<Session> {
    catalog
        .session(login.id, login.generation, "token")
        .unwrap()
}

#[test]
fn a_change_takes_effect_with_the_next_request() {
    let (_dir, catalog) = catalog();
    catalog
        .add_user("admin", Role::Admin, HASH, false, &[])
        .unwrap();
    let id = catalog
        .add_user("anna", Role::Viewer, HASH, false, &texts(&["b", "a"]))
        .unwrap();
    let login = || catalog.user_for_login("anna").unwrap().unwrap();
    let first = login();
    assert_eq!(first.id, id);
    assert!(!format!("{first:?}").contains("argon2"));
    let seen = session(&catalog, &first).unwrap();
    assert_eq!((seen.name.as_str(), seen.role), ("anna", Role::Viewer));
    assert!(seen.vms.cover("a") && !seen.vms.cover("c") && !seen.vms.cover("A"));

    // VMs change for the tokens that are out.
    let change = UserChange {
        grant: texts(&["c"]),
        revoke: texts(&["a"]),
        ..UserChange::default()
    };
    assert_eq!(
        catalog.change_user("anna", &change).unwrap().vms,
        ["b", "c"]
    );
    let seen = session(&catalog, &first).unwrap();
    assert!(!seen.vms.cover("a") && seen.vms.cover("c"));
    // All or nothing.
    let change = UserChange {
        grant: texts(&["d"]),
        revoke: texts(&["never"]),
        ..UserChange::default()
    };
    let error = catalog
        .change_user("anna", &change)
        .unwrap_err()
        .to_string();
    assert!(error.contains("never is not granted to anna"), "{error}");
    assert!(!session(&catalog, &first).unwrap().vms.cover("d"));

    // A role or a password ends them.
    let role = |role| UserChange {
        role: Some(role),
        ..UserChange::default()
    };
    catalog.change_user("anna", &role(Role::Operator)).unwrap();
    assert_eq!(session(&catalog, &first), None);
    let second = login();
    assert!(second.generation > first.generation);
    assert_eq!(session(&catalog, &second).unwrap().role, Role::Operator);
    catalog.change_user("anna", &role(Role::Operator)).unwrap();
    assert!(
        session(&catalog, &second).is_some(),
        "the same role changes nothing"
    );
    catalog.set_password("anna", HASH).unwrap();
    assert_eq!(session(&catalog, &second), None);

    // One token alone.
    let third = login();
    catalog.revoke_token("token", 2_000_000_000).unwrap();
    catalog.revoke_token("token", 2_000_000_000).unwrap();
    assert_eq!(session(&catalog, &third), None);
    let other = catalog.session(third.id, third.generation, "another");
    assert!(other.unwrap().is_some());
    assert_eq!(catalog.prune_tokens(1_999_999_999).unwrap(), 0);
    assert_eq!(session(&catalog, &third), None);
    assert_eq!(catalog.prune_tokens(2_000_000_000).unwrap(), 1);
    assert!(session(&catalog, &third).is_some());

    // Nobody inherits a name's tokens or VMs.
    catalog.record_login(third.id).unwrap();
    assert!(
        catalog
            .user("anna")
            .unwrap()
            .unwrap()
            .last_login_at
            .is_some()
    );
    catalog.remove_user("anna", false).unwrap();
    assert_eq!(session(&catalog, &third), None);
    catalog
        .add_user("anna", Role::Viewer, HASH, false, &[])
        .unwrap();
    let fourth = login();
    assert_ne!(fourth.id, third.id);
    assert_eq!(session(&catalog, &third), None);
    assert_eq!(
        session(&catalog, &fourth).unwrap().vms,
        Grants::Only(std::collections::BTreeSet::new())
    );
}

#[test]
fn the_last_admin_stays() {
    let (_dir, catalog) = catalog();
    catalog
        .add_user("one", Role::Admin, HASH, false, &[])
        .unwrap();
    let demote = UserChange {
        role: Some(Role::Viewer),
        ..UserChange::default()
    };
    for refused in [
        catalog.change_user("one", &demote).map(|_| ()),
        catalog.remove_user("one", false),
    ] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("one is the last admin"), "{error}");
    }
    catalog
        .add_user("two", Role::Admin, HASH, false, &[])
        .unwrap();
    catalog.change_user("one", &demote).unwrap();
    assert!(catalog.remove_user("two", false).is_err());
    catalog.remove_user("two", true).unwrap();
    let error = catalog.remove_user("two", true).unwrap_err().to_string();
    assert_eq!(error, "user two: not found");
}

#[test]
fn users_are_listed_as_clients_know_them() {
    let (_dir, catalog) = catalog();
    catalog
        .add_user("zoe", Role::Operator, HASH, true, &texts(&["x"]))
        .unwrap();
    catalog
        .add_user("adam", Role::Admin, HASH, false, &[])
        .unwrap();
    let users = serde_json::to_value(catalog.users().unwrap()).unwrap();
    assert_eq!(users[0]["name"], "adam");
    assert_eq!(
        (&users[0]["role"], &users[0]["all_vms"]),
        (&"admin".into(), &true.into())
    );
    assert_eq!(users[1]["vms"], serde_json::json!(["x"]));
    assert!(users[1]["last_login_at"].is_null());
    users[1]["created_at"]
        .as_str()
        .unwrap()
        .parse::<Timestamp>()
        .unwrap();
    assert!(!users.to_string().contains("argon2"));
    let zoe = catalog.user_for_login("zoe").unwrap().unwrap();
    assert_eq!(session(&catalog, &zoe).unwrap().vms, Grants::All);
    let revoke = UserChange {
        revoke: texts(&["x"]),
        ..UserChange::default()
    };
    let error = catalog.change_user("zoe", &revoke).unwrap_err().to_string();
    assert!(error.contains("--revoke --all-vms"), "{error}");
    let none = UserChange {
        all_vms: Some(false),
        revoke: texts(&["x"]),
        ..UserChange::default()
    };
    catalog.change_user("zoe", &none).unwrap();
    assert!(!session(&catalog, &zoe).unwrap().vms.cover("x"));
    assert!(Role::Admin > Role::Operator && Role::Operator > Role::Viewer);
}

#[test]
fn names_that_deceive_are_refused() {
    let (_dir, catalog) = catalog();
    let long = "ü".repeat(32);
    catalog
        .add_user(&long, Role::Viewer, HASH, false, &[])
        .unwrap();
    for name in [
        "",
        " a",
        "a\u{a0}",
        "a\nb",
        "a\u{7f}",
        "local:root",
        &format!("{long}x"),
    ] {
        let refused = catalog.add_user(name, Role::Viewer, HASH, false, &[]);
        assert!(matches!(refused, Err(Error::Invalid(_))), "{name:?}");
    }
    let twice = catalog.add_user(&long, Role::Admin, HASH, false, &[]);
    assert!(twice.unwrap_err().to_string().contains("is there already"));
    for vm in ["", "..", "a/b", "a\0"] {
        let refused = catalog.add_user("new", Role::Viewer, HASH, false, &texts(&[vm]));
        assert!(matches!(refused, Err(Error::Invalid(_))), "{vm:?}");
    }
    assert_eq!(catalog.user("new").unwrap(), None, "refused as a whole");
    let plain = catalog.add_user("new", Role::Viewer, "secret", false, &[]);
    assert!(plain.is_err(), "what is no hash is not stored");
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn the_record_is_found_by_what_it_is_about() {
    let (_dir, catalog) = catalog();
    let record = |time: &str, action, user: &str, vm: &str| AuditRecord {
        at: at(time),
        vm_name: Some(vm.to_owned()),
        ..AuditRecord::now(action, user, "192.0.2.1")
    };
    let full = AuditRecord {
        backup_id: Some("backup-a-1".into()),
        disk_index: Some(3),
        mount_id: Some("m-1".into()),
        path: Some("/naïve/\u{1f4be}".into()),
        bytes: Some(u64::from(u32::MAX) + 1),
        outcome: Outcome::Cancelled,
        detail: Some("the client went away".into()),
        ..record("2025-10-08T10:00:00.0425Z", Action::Download, "anna", "a")
    };
    catalog
        .record_audit(&[
            record("2025-10-08T09:00:00Z", Action::Mount, "anna", "a"),
            full.clone(),
            record("2025-10-08T11:00:00Z", Action::List, "bert", "a"),
            record("2025-10-08T12:00:00Z", Action::List, "bert", "b"),
        ])
        .unwrap();
    let ids = |filter: AuditFilter| -> Vec<i64> {
        let filter = AuditFilter {
            limit: 100,
            ..filter
        };
        catalog
            .audit(&filter)
            .unwrap()
            .iter()
            .map(|r| r.id)
            .collect()
    };
    let any = AuditFilter::default;
    assert_eq!(ids(any()), [4, 3, 2, 1]);
    assert_eq!(
        ids(AuditFilter {
            user: Some("anna".into()),
            ..any()
        }),
        [2, 1]
    );
    assert_eq!(
        ids(AuditFilter {
            action: Some(Action::List),
            ..any()
        }),
        [4, 3]
    );
    assert_eq!(
        ids(AuditFilter {
            vm_name: Some("a".into()),
            ..any()
        }),
        [3, 2, 1]
    );
    assert_eq!(
        ids(AuditFilter {
            backup_id: Some("backup-a-1".into()),
            ..any()
        }),
        [2]
    );
    assert_eq!(
        ids(AuditFilter {
            mount_id: Some("m-1".into()),
            ..any()
        }),
        [2]
    );
    let (since, until) = (at("2025-10-08T10:00:00.042Z"), at("2025-10-08T12:00:00Z"));
    assert_eq!(
        ids(AuditFilter {
            since: Some(since),
            ..any()
        }),
        [4, 3, 2]
    );
    assert_eq!(
        ids(AuditFilter {
            until: Some(until),
            ..any()
        }),
        [3, 2, 1]
    );
    assert_eq!(
        ids(AuditFilter {
            before_id: Some(3),
            vm_name: Some("a".into()),
            ..any()
        }),
        [2, 1]
    );
    let one = catalog.audit(&AuditFilter { limit: 1, ..any() }).unwrap();
    assert_eq!(one.len(), 1);

    let filter = AuditFilter {
        mount_id: full.mount_id.clone(),
        limit: 1,
        ..any()
    };
    let back = catalog.audit(&filter).unwrap().remove(0);
    let expected = AuditRecord {
        id: 2,
        at: at("2025-10-08T10:00:00.042Z"),
        ..full
    };
    assert_eq!(back, expected);
    assert_eq!(
        serde_json::to_value(&back).unwrap(),
        serde_json::json!({
            "id": 2, "at": "2025-10-08T10:00:00.042Z", "user": "anna", "address": "192.0.2.1",
            "action": "download", "vm_name": "a", "backup_id": "backup-a-1", "disk_index": 3,
            "mount_id": "m-1", "path": "/naïve/💾", "bytes": 4294967296_u64,
            "outcome": "cancelled", "detail": "the client went away"
        })
    );

    // Texts of any length are kept to a limit, between two characters.
    let long = AuditRecord {
        path: Some(format!("x{}", "ü".repeat(9000))),
        ..AuditRecord::now(Action::List, "anna", "")
    };
    catalog.record_audit(&[long]).unwrap();
    let kept = catalog
        .audit(&AuditFilter { limit: 1, ..any() })
        .unwrap()
        .remove(0);
    assert_eq!(kept.path.unwrap().len(), 4095);

    // By time, whenever they were recorded; pages follow without gap or repetition.
    catalog
        .record_audit(&[record("2025-10-08T10:30:00Z", Action::List, "bert", "c")])
        .unwrap();
    assert_eq!(ids(any()), [5, 4, 3, 6, 2, 1]);
    assert_eq!(
        ids(AuditFilter {
            before_id: Some(3),
            ..any()
        }),
        [6, 2, 1]
    );
    assert_eq!(
        ids(AuditFilter {
            before_id: Some(6),
            ..any()
        }),
        [2, 1]
    );
    assert_eq!(catalog.prune_audit(at("2025-10-08T11:00:00Z")).unwrap(), 3);
    assert_eq!(ids(any()), [5, 4, 3]);
    assert_eq!(
        ids(AuditFilter {
            before_id: Some(6),
            ..any()
        }),
        [0; 0]
    );
    for action in Action::ALL {
        assert_eq!(action.name().parse::<Action>().unwrap(), *action);
    }
    assert!(
        "nothing"
            .parse::<Action>()
            .unwrap_err()
            .contains("login_failed")
    );
}

#[test]
fn no_answer_has_to_be_sorted() {
    let (_dir, catalog) = catalog();
    let text = || Some("x".to_owned());
    let any = AuditFilter::default;
    let time = Some(Timestamp::UNIX_EPOCH);
    for (index, filter) in [
        ("audit_at", any()),
        (
            "audit_user",
            AuditFilter {
                user: text(),
                ..any()
            },
        ),
        (
            "audit_action",
            AuditFilter {
                action: Some(Action::List),
                ..any()
            },
        ),
        (
            "audit_vm",
            AuditFilter {
                vm_name: text(),
                ..any()
            },
        ),
        (
            "audit_backup",
            AuditFilter {
                backup_id: text(),
                ..any()
            },
        ),
        (
            "audit_mount",
            AuditFilter {
                mount_id: text(),
                ..any()
            },
        ),
        (
            "audit_at",
            AuditFilter {
                since: time,
                until: time,
                ..any()
            },
        ),
        (
            "audit_vm",
            AuditFilter {
                vm_name: text(),
                since: time,
                before_id: Some(1),
                ..any()
            },
        ),
    ] {
        let (sql, values) = audit::select(&filter);
        let plan = catalog
            .rows(
                &format!("EXPLAIN QUERY PLAN {sql}"),
                rusqlite::params_from_iter(values),
                |row| row.get::<_, String>(3),
            )
            .unwrap();
        let plan = plan.join("; ");
        assert!(
            plan.contains(&format!("INDEX {index} ")) || plan.ends_with(index),
            "{plan}"
        );
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }
}

#[test]
fn pruning_goes_on_until_all_is_gone() {
    let (_dir, catalog) = catalog();
    let old = AuditRecord {
        at: at("2020-01-01T00:00:00Z"),
        ..AuditRecord::now(Action::List, "a", "")
    };
    catalog.record_audit(&vec![old; 12_000]).unwrap();
    catalog
        .record_audit(&[AuditRecord::now(Action::List, "a", "")])
        .unwrap();
    assert_eq!(
        catalog.prune_audit(at("2021-01-01T00:00:00Z")).unwrap(),
        12_000
    );
    let filter = AuditFilter {
        limit: u32::MAX,
        ..AuditFilter::default()
    };
    assert_eq!(catalog.audit(&filter).unwrap().len(), 1);
}

/// Figures, for whoever wants them: `cargo test --release -- --ignored --nocapture costs`.
#[test]
#[ignore = "a measurement"]
fn costs() {
    let (_dir, catalog) = catalog();
    let vms: Vec<String> = (0..20).map(|n| format!("vm{n}")).collect();
    catalog
        .add_user("anna", Role::Viewer, HASH, false, &vms)
        .unwrap();
    let login = catalog.user_for_login("anna").unwrap().unwrap();
    for n in 0..1000 {
        catalog
            .revoke_token(&format!("token-{n}"), 2_000_000_000)
            .unwrap();
    }
    let per = |what: &str, count: u32, run: &mut dyn FnMut()| {
        let clock = Instant::now();
        (0..count).for_each(|_| run());
        println!("{what}: {:?}", clock.elapsed() / count);
    };
    per("session, 20 VMs", 20_000, &mut || {
        assert!(session(&catalog, &login).is_some())
    });
    let all = UserChange {
        all_vms: Some(true),
        ..UserChange::default()
    };
    catalog.change_user("anna", &all).unwrap();
    per("session, all VMs", 20_000, &mut || {
        assert!(session(&catalog, &login).is_some())
    });
    let record = AuditRecord::now(Action::List, "anna", "192.0.2.1");
    per("one audit record", 1000, &mut || {
        catalog.record_audit(std::slice::from_ref(&record)).unwrap();
    });
    let many = vec![record; 100];
    per("100 audit records", 100, &mut || {
        catalog.record_audit(&many).unwrap()
    });
    per("a durable write", 50, &mut || {
        catalog.set_password("anna", HASH).unwrap()
    });
}
