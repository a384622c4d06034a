//! The record of who did what, for administrators.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use sendense::catalog::{Action, AuditFilter, AuditRecord, Role};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::App;
use crate::api::answer::{Answer, Failure, Refusals};
use crate::api::caller::Caller;
use crate::api::request::Parameters;
use crate::api::work::with_catalog;

/// How many records are answered when nobody says.
const USUAL: u64 = 100;
/// The most at once.
const MOST: u64 = 1000;

/// Records, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Audit {
    records: Vec<AuditRecord>,
    count: usize,
    /// Given as `cursor`, it leads to older records.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Who mounted, listed, downloaded and released what and when, from where; newest
/// first. For administrators.
#[utoipa::path(get, path = "/api/v1/audit", tag = "Administration",
    params(
        ("user" = Option<String>, Query, description = "Only this user"),
        ("action" = inline(Option<Action>), Query, description = "Only this action"),
        ("vm_name" = Option<String>, Query, description = "Only this VM"),
        ("backup_id" = Option<String>, Query, description = "Only this backup"),
        ("mount_id" = Option<String>, Query, description = "Only this mount"),
        ("since" = Option<String>, Query, description = "From this time on (RFC 3339)"),
        ("until" = Option<String>, Query, description = "Before this time (RFC 3339)"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "At most so many; 100 if nobody says"),
        ("cursor" = Option<String>, Query, pattern = "^[0-9]{0,18}$", description = "From next_cursor of an answer"),
    ),
    responses((status = 200, body = Audit), Refusals))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    parameters: Parameters,
) -> Answer<Json<Audit>> {
    caller.must_be(Role::Admin)?;
    let text = |name| Ok::<_, Failure>(parameters.text(name)?.map(str::to_owned));
    let time = |name| {
        let given = parameters.text(name)?;
        let parse = |text: &str| {
            text.parse().map_err(|_| {
                Failure::bad_request(format!(
                    "the parameter `{name}` must be a time such as 2025-10-08T19:24:31Z"
                ))
            })
        };
        given.map(parse).transpose()
    };
    let words = Action::ALL.iter().map(|action| (action.name(), *action));
    let action = parameters.word("action", &words.collect::<Vec<_>>())?;
    let limit = parameters.number("limit", 1, MOST)?.unwrap_or(USUAL);
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let cursor = parameters.text("cursor")?;
    let number = |text: &str| text.parse::<i64>().ok().filter(|id| *id >= 0);
    let wrong = || Failure::bad_request("the parameter `cursor` is none that an answer gave");
    let before_id = match cursor {
        Some(text) => Some(number(text).ok_or_else(wrong)?),
        None => None,
    };
    let filter = AuditFilter {
        user: text("user")?,
        action,
        vm_name: text("vm_name")?,
        backup_id: text("backup_id")?,
        mount_id: text("mount_id")?,
        since: time("since")?,
        until: time("until")?,
        before_id,
        limit,
    };
    let records = with_catalog(move || Ok(app.catalog.audit(&filter)?)).await?;
    let full = u32::try_from(records.len()).is_ok_and(|count| count == limit);
    Ok(Json(Audit {
        count: records.len(),
        next_cursor: records
            .last()
            .filter(|_| full)
            .map(|record| record.id.to_string()),
        records,
    }))
}
