//! Pages by key: a page names the last row that it gave, so that rows that come or go meanwhile neither repeat nor hide others.

use std::str::FromStr;

use uuid::Uuid;

use crate::error::{Result, StoreError};

/// The last row of a page: its ordering columns. Callers pass it on as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// The text, for a page token.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A cursor from a page token. Whether it fits is checked by the list that gets it.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// From the ordering columns of a row. The separator occurs in no name, number or identifier.
    pub(crate) fn of(columns: &[&dyn std::fmt::Display]) -> Self {
        let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
        Self(columns.join("|"))
    }

    fn columns<const N: usize>(&self) -> Result<[&str; N]> {
        let columns: Vec<&str> = self.0.split('|').collect();
        columns.try_into().map_err(|_| StoreError::InvalidCursor)
    }
}

/// Which page is wanted.
#[derive(Debug, Clone)]
pub struct PageRequest {
    /// Most items; at least 1 and at most [`sealift_common::bounds::PAGE_MAX`] are given.
    pub size: u32,
    /// The page begins after this row.
    pub after: Option<Cursor>,
}

impl PageRequest {
    /// The first page.
    pub const fn first(size: u32) -> Self {
        Self { size, after: None }
    }

    /// Rows to ask for: one more than wanted, to learn whether there is a next page.
    pub(crate) fn limit(&self) -> i64 {
        i64::from(self.wanted()) + 1
    }

    fn wanted(&self) -> u32 {
        self.size.clamp(1, sealift_common::bounds::PAGE_MAX)
    }

    /// The identifier to continue below, in lists that run from high to low identifiers.
    pub(crate) fn below_id(&self) -> Result<Uuid> {
        self.single().map(|id| id.unwrap_or(Uuid::max()))
    }

    /// The number to continue below, in lists that run from high to low numbers.
    pub(crate) fn below_number(&self) -> Result<i64> {
        self.single().map(|number| number.unwrap_or(i64::MAX))
    }

    /// The text to continue above, in lists that run by text. All texts are above the empty one.
    pub(crate) fn above_text(&self) -> Result<String> {
        self.single().map(Option::unwrap_or_default)
    }

    /// Text and identifier to continue above.
    pub(crate) fn above_text_id(&self) -> Result<(String, Uuid)> {
        let Some(after) = &self.after else {
            return Ok((String::new(), Uuid::nil()));
        };
        let [text, id] = after.columns()?;
        Ok((text.to_owned(), parse(id)?))
    }

    /// Position and name to continue above.
    pub(crate) fn above_position(&self) -> Result<(i64, String)> {
        let Some(after) = &self.after else {
            return Ok((-1, String::new()));
        };
        let [position, name] = after.columns()?;
        Ok((parse(position)?, name.to_owned()))
    }

    /// Two texts and an identifier to continue above.
    pub(crate) fn above_texts(&self) -> Result<(String, String, Uuid)> {
        let Some(after) = &self.after else {
            return Ok((String::new(), String::new(), Uuid::nil()));
        };
        let [first, second, id] = after.columns()?;
        Ok((first.to_owned(), second.to_owned(), parse(id)?))
    }

    fn single<T: FromStr>(&self) -> Result<Option<T>> {
        let Some(after) = &self.after else { return Ok(None) };
        let [column] = after.columns()?;
        parse(column).map(Some)
    }
}

fn parse<T: FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| StoreError::InvalidCursor)
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Cursor>,
}

impl<T> Page<T> {
    /// A page from up to one row more than wanted.
    pub(crate) fn of(mut items: Vec<T>, request: &PageRequest, cursor: impl Fn(&T) -> Cursor) -> Self {
        let wanted = request.wanted() as usize;
        let more = items.len() > wanted;
        items.truncate(wanted);
        let next = items.last().filter(|_| more).map(cursor);
        Self { items, next }
    }
}
