//! The virtual machines.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use sendense::catalog::{VmContext, VmDisks};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::App;
use crate::api::answer::{Answer, Failure, LookUpRefusals, Refusals};
use crate::api::caller::Caller;
use crate::api::request::{Parameters, Segment};
use crate::api::work::with_catalog;

/// The VMs that the caller may see.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VmContexts {
    vm_contexts: Vec<VmContext>,
    count: usize,
}

/// The VMs that the caller may see, by name.
#[utoipa::path(get, path = "/api/v1/vm-contexts", tag = "Virtual machines",
    params(
        ("vm_name" = Option<String>, Query, description = "Only the VM of this name"),
        ("search" = Option<String>, Query, description = "Only VMs whose name contains this, in any case"),
    ),
    responses((status = 200, body = VmContexts), Refusals))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    parameters: Parameters,
) -> Answer<Json<VmContexts>> {
    let name = parameters.text("vm_name")?.map(str::to_owned);
    let search = parameters.text("search")?.map(str::to_lowercase);
    let mut all = with_catalog(move || Ok(app.catalog.vm_contexts()?)).await?;
    all.retain(|vm| {
        caller.sees(&vm.vm_name)
            && name.as_ref().is_none_or(|name| *name == vm.vm_name)
            && search
                .as_ref()
                .is_none_or(|part| vm.vm_name.to_lowercase().contains(part))
    });
    Ok(Json(VmContexts {
        count: all.len(),
        vm_contexts: all,
    }))
}

fn unknown(name: &str) -> Failure {
    Failure::not_found(format!("VM not found: {name}"))
}

/// One VM.
#[utoipa::path(get, path = "/api/v1/vm-contexts/{vm_name}", tag = "Virtual machines",
    params(("vm_name" = String, Path, description = "The VM's name")),
    responses((status = 200, body = VmContext), LookUpRefusals))]
pub(crate) async fn detail(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(name): Segment,
) -> Answer<Json<VmContext>> {
    caller.must_see(&name)?;
    let all = with_catalog(move || {
        let mut all = app.catalog.vm_contexts()?;
        all.retain(|vm| vm.vm_name == name);
        // Several may share the name; the newest is the VM that there is now.
        all.sort_by(|a, b| a.created_at.cmp(&b.created_at));
        all.pop().ok_or_else(|| unknown(&name))
    });
    Ok(Json(all.await?))
}

/// The disks of a VM.
#[utoipa::path(get, path = "/api/v1/vm-contexts/{vm_name}/disks", tag = "Virtual machines",
    params(("vm_name" = String, Path, description = "The VM's name")),
    responses((status = 200, body = VmDisks), LookUpRefusals))]
pub(crate) async fn disks(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(name): Segment,
) -> Answer<Json<VmDisks>> {
    caller.must_see(&name)?;
    let disks =
        with_catalog(move || app.catalog.vm_disks(&name)?.ok_or_else(|| unknown(&name))).await?;
    Ok(Json(disks))
}
