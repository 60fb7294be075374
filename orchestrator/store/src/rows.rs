//! From columns to domain values. Whatever this program would not have written is [`StoreError::Corrupt`], named by place.

use std::str::FromStr;

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Result, StoreError};

/// A row, for the error that names it.
pub(crate) struct At {
    table: &'static str,
    row: String,
}

impl At {
    pub(crate) fn new(table: &'static str, row: impl ToString) -> Self {
        Self {
            table,
            row: row.to_string(),
        }
    }

    pub(crate) fn corrupt(&self, column: &'static str) -> StoreError {
        StoreError::Corrupt {
            table: self.table,
            column,
            row: self.row.clone(),
        }
    }

    /// Names, digests, phases: everything that has a text form.
    pub(crate) fn parse<T: FromStr>(&self, column: &'static str, text: &str) -> Result<T> {
        text.parse().map_err(|_| self.corrupt(column))
    }

    pub(crate) fn parse_opt<T: FromStr>(
        &self,
        column: &'static str,
        text: Option<&str>,
    ) -> Result<Option<T>> {
        text.map(|text| self.parse(column, text)).transpose()
    }

    pub(crate) fn number(&self, column: &'static str, value: i64) -> Result<u64> {
        u64::try_from(value).map_err(|_| self.corrupt(column))
    }

    pub(crate) fn small(&self, column: &'static str, value: i64) -> Result<u32> {
        u32::try_from(value).map_err(|_| self.corrupt(column))
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, column: &'static str, text: &str) -> Result<T> {
        serde_json::from_str(text).map_err(|_| self.corrupt(column))
    }

    pub(crate) fn json_opt<T: DeserializeOwned>(
        &self,
        column: &'static str,
        text: Option<&str>,
    ) -> Result<Option<T>> {
        text.map(|text| self.json(column, text)).transpose()
    }

    pub(crate) fn bytes32(&self, column: &'static str, bytes: &[u8]) -> Result<[u8; 32]> {
        bytes.try_into().map_err(|_| self.corrupt(column))
    }
}

/// A number as the databases keep it.
pub(crate) fn int(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| StoreError::TooLarge(value))
}

/// JSON kept as text.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<String> {
    Ok(serde_json::to_string(value)?)
}

/// JSON kept as the very bytes that its digest covers.
pub(crate) fn canonical_text<T: Serialize>(value: &T) -> Result<String> {
    let bytes = sealift_common::canonical::to_vec(value)?;
    // JSON is UTF-8 by definition, so nothing is ever replaced.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// JSON kept as text, where there may be none.
pub(crate) fn json_opt<T: Serialize>(value: Option<&T>) -> Result<Option<String>> {
    value.map(json).transpose()
}

/// Many rows to many domain values.
pub(crate) fn all<R, T: TryFrom<R, Error = StoreError>>(rows: Vec<R>) -> Result<Vec<T>> {
    rows.into_iter().map(T::try_from).collect()
}

/// At most one row to at most one domain value.
pub(crate) fn one<R, T: TryFrom<R, Error = StoreError>>(row: Option<R>) -> Result<Option<T>> {
    row.map(T::try_from).transpose()
}

/// A count as callers want it; more than `u32::MAX` of anything is as good as `u32::MAX`.
pub(crate) fn count(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}
