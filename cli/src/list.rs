//! Lists: read page by page. People see as many rows as they asked for; programs get everything, written as it comes, so that no
//! list has to fit into memory.

use sealift_common::bounds;
use sealift_proto::v1::{
    Agent, AuditEvent, Component, Drift, Environment, Failure, HistoryEntry, Hold, Job, ListAgentsResponse,
    ListAuditEventsResponse, ListComponentsResponse, ListDriftResponse, ListEnvironmentsResponse,
    ListFailuresResponse, ListHistoryResponse, ListHoldsResponse, ListJobsResponse, ListPacketsResponse,
    ListPromotionsResponse, ListReleasesResponse, ListStickersResponse, ListTargetsResponse,
    ListTasksResponse, ListUsersResponse, ListVersionsResponse, Packet, PlanPromotionResponse, PlanTarget,
    Promotion, Release, ReportedSticker, Target, Task, User, VersionEntry,
};
use serde::Serialize;
use tonic::{Response, Status};

use crate::{
    args::{Global, ListArgs},
    error::CliError,
    output::{self, Format, Rows, parts::Document},
};

/// Rows of a table when nobody says how many.
pub const ROWS: u32 = 200;

/// A page of a list, as the API gives it.
pub trait Page: Serialize {
    /// What is listed.
    type Item: Serialize;
    /// Where it is in the page's JSON form.
    const FIELD: &'static str;
    /// Its items and the token of the next page.
    fn parts(&mut self) -> (&mut Vec<Self::Item>, &mut String);
}

macro_rules! pages {
    ($($page:ident { $field:ident: $item:ident })*) => {$(
        impl Page for $page {
            type Item = $item;
            const FIELD: &'static str = stringify!($field);
            fn parts(&mut self) -> (&mut Vec<$item>, &mut String) {
                (&mut self.$field, &mut self.next_page_token)
            }
        }
    )*};
}

pages! {
    ListAgentsResponse { agents: Agent }
    ListAuditEventsResponse { events: AuditEvent }
    ListComponentsResponse { components: Component }
    ListDriftResponse { drift: Drift }
    ListEnvironmentsResponse { environments: Environment }
    ListFailuresResponse { failures: Failure }
    ListHistoryResponse { entries: HistoryEntry }
    ListHoldsResponse { holds: Hold }
    ListJobsResponse { jobs: Job }
    ListPacketsResponse { packets: Packet }
    ListPromotionsResponse { promotions: Promotion }
    ListReleasesResponse { releases: Release }
    ListStickersResponse { stickers: ReportedSticker }
    ListTargetsResponse { targets: Target }
    ListTasksResponse { tasks: Task }
    ListUsersResponse { users: User }
    ListVersionsResponse { versions: VersionEntry }
    PlanPromotionResponse { targets: PlanTarget }
}

/// What comes beside the items of a list.
pub struct Rest<P> {
    /// The last page, without its items and its token.
    pub page: P,
    /// Where the list goes on; empty at its end.
    pub next: String,
}

/// Reads a list page by page and gives the items of each page to `take`, until `limit` items are there or the list ends. `fetch` gets
/// page size and page token.
pub async fn walk<P: Page>(
    limit: Option<u32>,
    mut fetch: impl AsyncFnMut(i32, String) -> Result<Response<P>, Status>,
    mut take: impl FnMut(Vec<P::Item>) -> Result<(), CliError>,
) -> Result<Rest<P>, CliError> {
    let mut left = limit;
    let mut token = String::new();
    loop {
        let size = left.map_or(bounds::PAGE_MAX, |left| left.min(bounds::PAGE_MAX));
        let page_size = i32::try_from(size).unwrap_or(i32::MAX);
        let mut page = fetch(page_size, token.clone()).await?.into_inner();
        let (items, next) = page.parts();
        let (mut items, next) = (std::mem::take(items), std::mem::take(next));
        items.truncate(size as usize);
        left = left.map(|left| left.saturating_sub(u32::try_from(items.len()).unwrap_or(u32::MAX)));
        take(items)?;
        if next.is_empty() || left == Some(0) {
            return Ok(Rest { page, next });
        }
        if next == token {
            return Err(CliError::failed(
                "the orchestrator sends the same page again and again",
                "ask whoever runs it",
            ));
        }
        token = next;
    }
}

/// The items of a list, at most `limit`, with what comes beside them.
pub async fn read<P: Page>(
    limit: Option<u32>,
    fetch: impl AsyncFnMut(i32, String) -> Result<Response<P>, Status>,
) -> Result<(Vec<P::Item>, Rest<P>), CliError> {
    let mut all = Vec::new();
    let rest = walk(limit, fetch, |items| {
        all.extend(items);
        Ok(())
    })
    .await?;
    Ok((all, rest))
}

/// Shows a list: as many rows as were asked for, or for programs one document that is written page by page. A document that is cut
/// by `--limit` holds the token of what follows.
pub async fn show<P: Page>(
    global: &Global,
    list: ListArgs,
    fetch: impl AsyncFnMut(i32, String) -> Result<Response<P>, Status>,
    rows: impl FnOnce(&[P::Item]) -> Rows,
) -> Result<(), CliError> {
    if global.output == Format::Table {
        let items = table(list, fetch).await?;
        return output::write_rows(&rows(&items));
    }
    let document = Document::new(global.output, P::FIELD);
    write(document, list, fetch, |_| ()).await
}

/// The items of a table; says so when there are more.
pub async fn table<P: Page>(
    list: ListArgs,
    fetch: impl AsyncFnMut(i32, String) -> Result<Response<P>, Status>,
) -> Result<Vec<P::Item>, CliError> {
    let limit = list.limit.unwrap_or(ROWS);
    let (items, rest) = read(Some(limit), fetch).await?;
    if !rest.next.is_empty() {
        anstream::eprintln!("there is more: raise --limit (now {limit}) to see it");
    }
    Ok(items)
}

/// Writes a list for programs; `look` sees each item.
pub async fn write<P: Page>(
    mut document: Document,
    list: ListArgs,
    fetch: impl AsyncFnMut(i32, String) -> Result<Response<P>, Status>,
    mut look: impl FnMut(&P::Item),
) -> Result<(), CliError> {
    let mut rest = walk(list.limit, fetch, |items| {
        items.iter().for_each(&mut look);
        document.items(&items)
    })
    .await?;
    *rest.page.parts().1 = rest.next;
    document.end(&rest.page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of so many users.
    fn users(count: usize) -> impl AsyncFnMut(i32, String) -> Result<Response<ListUsersResponse>, Status> {
        async move |size, token: String| {
            let begin = token.parse().unwrap_or(0);
            let end = count.min(begin + size as usize);
            let user = |number| User {
                name: format!("users/{number}"),
                ..User::default()
            };
            Ok(Response::new(ListUsersResponse {
                users: (begin..end).map(user).collect(),
                next_page_token: if end < count {
                    end.to_string()
                } else {
                    String::new()
                },
            }))
        }
    }

    #[tokio::test]
    async fn a_list_without_a_limit_is_read_to_its_end_a_page_at_a_time() {
        let (mut pages, mut all) = (0, Vec::new());
        let count = bounds::PAGE_MAX as usize * 2 + 1;
        let rest = walk(None, users(count), |items| {
            pages += 1;
            all.extend(items);
            Ok(())
        });
        assert_eq!(rest.await.unwrap().next, "");
        assert_eq!((pages, all.len()), (3, count));
        assert_eq!(all[count - 1].name, format!("users/{}", count - 1));
    }

    #[tokio::test]
    async fn a_list_that_is_cut_gives_the_token_of_what_follows() {
        for (count, limit, wanted, token) in [
            (450, 200, 200, "200"),
            (200, 200, 200, ""),
            (3, 200, 3, ""),
            (5_000, 2_500, 2_500, "2500"),
        ] {
            let (items, rest) = read(Some(limit), users(count)).await.unwrap();
            assert_eq!((items.len(), rest.next.as_str()), (wanted, token));
        }
    }

    #[tokio::test]
    async fn a_list_that_never_goes_on_is_no_endless_loop() {
        let same = async |_: i32, _: String| {
            Ok(Response::new(ListUsersResponse {
                users: vec![User::default()],
                next_page_token: "same".to_owned(),
            }))
        };
        let failed = read::<ListUsersResponse>(None, same).await;
        assert!(failed.is_err_and(|error| error.to_string().contains("same page")));
    }

    /// Programs find items where the API's JSON form has them.
    fn is_in_its_field<P: Page + Default>()
    where
        P::Item: Default,
    {
        let mut page = P::default();
        *page.parts().0 = vec![P::Item::default()];
        let json = serde_json::to_value(&page).unwrap();
        assert!(json[P::FIELD].is_array(), "{json}");
    }

    #[test]
    fn items_are_written_where_the_api_has_them() {
        is_in_its_field::<ListAgentsResponse>();
        is_in_its_field::<ListAuditEventsResponse>();
        is_in_its_field::<ListHistoryResponse>();
        is_in_its_field::<ListPacketsResponse>();
        is_in_its_field::<ListStickersResponse>();
    }
}
