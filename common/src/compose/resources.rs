//! `ulimits`, `logging` and `deploy`: limits, and the order of an update.

use std::collections::BTreeMap;

use super::{
    cx::{At, Cx, quoted},
    scalar,
};
use crate::{
    bounds,
    manifest::{Logging, Resources, Ulimit, UpdateOrder},
};

/// The least memory with which the engine makes a container.
const LEAST_MEMORY: u64 = 6 << 20;

/// Reads `ulimits`.
pub fn ulimits(cx: &mut Cx, at: &At) -> BTreeMap<String, Ulimit> {
    let mut ulimits = BTreeMap::new();
    for (name, at) in cx.entries(at, bounds::SERVICE_ENTRIES) {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase()) {
            cx.wrong(
                &at,
                format!("{} is no process limit", quoted(name)),
                "name it like nofile",
            );
        }
        let limit = |cx: &mut Cx, at: &At| {
            cx.whole(at, -1, i64::from(i32::MAX))
                .and_then(|value| i32::try_from(value).ok())
        };
        let (soft, hard) = if at.is_map() {
            let fields = cx.fields(&at, "services.*.ulimits.*");
            let soft = fields.get("soft").and_then(|at| limit(cx, at));
            let hard = fields.get("hard").and_then(|at| limit(cx, at));
            if !(fields.contains_key("soft") && fields.contains_key("hard")) {
                cx.wrong(&at, "it needs both soft and hard", "add the missing one");
            }
            (soft, hard)
        } else {
            let both = limit(cx, &at);
            (both, both)
        };
        if let (Some(soft), Some(hard)) = (soft, hard) {
            if hard != -1 && (soft == -1 || soft > hard) {
                cx.wrong(
                    &at,
                    "the soft limit is above the hard one",
                    "lower the soft limit",
                );
            }
            ulimits.insert(name.to_owned(), Ulimit { soft, hard });
        }
    }
    ulimits
}

/// Reads `logging`.
pub fn logging(cx: &mut Cx, at: &At) -> Option<Logging> {
    let fields = cx.fields(at, "services.*.logging");
    let options = fields
        .get("options")
        .map(|at| cx.pairs(at, None))
        .unwrap_or_default();
    let Some(driver) = fields.get("driver") else {
        cx.wrong(
            at,
            "it has no driver",
            "name the driver (json-file is the usual one): options only fit the driver that they are for",
        );
        return None;
    };
    let driver = cx.text(driver)?;
    Some(Logging { driver, options })
}

/// Reads `deploy`.
pub fn deploy(cx: &mut Cx, at: &At) -> (Resources, UpdateOrder) {
    let deploy = cx.fields(at, "services.*.deploy");
    let limits = deploy.get("resources").map(|at| limits(cx, at));
    let order = deploy.get("update_config").map(|at| update_order(cx, at));
    (limits.unwrap_or_default(), order.unwrap_or_default())
}

fn update_order(cx: &mut Cx, at: &At) -> UpdateOrder {
    let fields = cx.fields(at, "services.*.deploy.update_config");
    let Some(at) = fields.get("order") else {
        return UpdateOrder::default();
    };
    match cx.text(at).as_deref() {
        Some("start-first") => UpdateOrder::StartFirst,
        Some("stop-first") | None => UpdateOrder::StopFirst,
        Some(other) => {
            let message = format!("{} is no order", quoted(other));
            cx.wrong(at, message, "write stop-first or start-first");
            UpdateOrder::default()
        }
    }
}

fn limits(cx: &mut Cx, at: &At) -> Resources {
    let mut limits = Resources::default();
    let resources = cx.fields(at, "services.*.deploy.resources");
    let Some(at) = resources.get("limits") else {
        return limits;
    };
    let fields = cx.fields(at, "services.*.deploy.resources.limits");
    if let Some(at) = fields.get("cpus")
        && let Some(text) = cx.number(at)
    {
        match scalar::milli(&text) {
            Some(milli) => limits.milli_cpus = milli,
            None => cx.wrong(
                at,
                format!("{} is no number of processors", quoted(&text)),
                "write it like \"0.5\", with at most three decimals",
            ),
        }
    }
    if let Some(at) = fields.get("memory")
        && let Some(text) = cx.number(at)
    {
        match scalar::bytes(&text) {
            Some(bytes) if bytes == 0 || bytes >= LEAST_MEMORY => limits.memory_bytes = bytes,
            Some(_) => cx.wrong(at, format!("{} is less than 6 MiB", quoted(&text)), "raise it"),
            None => cx.wrong(at, format!("{} is no size", quoted(&text)), "write it like 64m"),
        }
    }
    if let Some(at) = fields.get("pids") {
        let pids = cx.whole(at, 0, i64::from(i32::MAX)).unwrap_or_default();
        limits.pids = u32::try_from(pids).unwrap_or_default();
    }
    limits
}
