//! F18: files that a crash left torn, and files that a disk has spoiled. SQLite only; PostgreSQL looks after its own files.

/// Named like the cases of the suite, so that the stage that runs them finds these too.
mod on_sqlite {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use sealift_store::{Db, PageRequest, StoreConfig, StoreError};
    use tempfile::TempDir;

    use crate::{harness::config, seed::tenant};

    const TENANTS: usize = 8;
    const PAGE: usize = 4096;
    const WAL_HEADER: usize = 32;
    const FRAME: usize = 24 + PAGE;

    fn at(folder: &Path) -> (PathBuf, PathBuf, StoreConfig) {
        let file = folder.join("sealift.db");
        let url = format!("sqlite:{}", file.display());
        (file, folder.join("sealift.db-wal"), config(url))
    }

    /// A database and its log as they are while tenants were committed, one transaction each.
    async fn under_way(folder: &Path) -> (Vec<u8>, Vec<u8>) {
        let (file, wal, config) = at(folder);
        // The schema is in the file and not in the log.
        Db::open(&config).await.unwrap().close().await;
        let db = Db::open(&config).await.unwrap();
        for number in 0..TENANTS {
            let mut tx = db.write().await.unwrap();
            tx.insert_tenant(&tenant(&format!("tenant-{number}")))
                .await
                .unwrap();
            tx.commit().await.unwrap();
        }
        let copy = (fs::read(file).unwrap(), fs::read(wal).unwrap());
        db.close().await;
        copy
    }

    async fn opened(file: &[u8], wal: &[u8]) -> Result<Vec<String>, StoreError> {
        let folder = TempDir::new().unwrap();
        let (path, log, config) = at(folder.path());
        fs::write(path, file).unwrap();
        fs::write(log, wal).unwrap();
        let db = Db::open(&config).await?;
        let mut tx = db.read().await?;
        let page = tx.list_tenants(&PageRequest::first(100)).await?;
        drop(tx);
        db.close().await;
        let mut names: Vec<String> = page.items.iter().map(|tenant| tenant.name.to_string()).collect();
        names.sort();
        Ok(names)
    }

    #[tokio::test]
    async fn f18_a_torn_log_opens_with_a_beginning_of_what_was_committed() {
        let folder = TempDir::new().unwrap();
        let (file, wal) = under_way(folder.path()).await;
        let all: Vec<String> = (0..TENANTS).map(|number| format!("tenant-{number}")).collect();
        let frames = (wal.len() - WAL_HEADER) / FRAME;
        assert!(frames >= TENANTS, "{frames} frames");
        let mut before = 0;
        for frame in 0..=frames {
            let whole = WAL_HEADER + frame * FRAME;
            for cut in [whole, (whole + FRAME / 2).min(wal.len())] {
                let found = opened(&file, &wal[..cut]).await.unwrap();
                assert_eq!(found, all[..found.len()], "cut after {cut} bytes");
                assert!(found.len() >= before, "cut after {cut} bytes");
                before = found.len();
            }
        }
        assert_eq!(before, TENANTS);
    }

    #[tokio::test]
    async fn f18_a_damaged_file_is_refused() {
        let folder = TempDir::new().unwrap();
        under_way(folder.path()).await;
        let (path, ..) = at(folder.path());
        let whole = fs::read(path).unwrap();
        assert_eq!(opened(&whole, &[]).await.unwrap().len(), TENANTS);
        for page in 0..whole.len() / PAGE {
            let mut spoiled = whole.clone();
            spoiled[page * PAGE..page * PAGE + 100].fill(0xA5);
            let refused = opened(&spoiled, &[]).await;
            assert!(
                matches!(refused, Err(StoreError::Damaged(_))),
                "page {page}: {refused:?}"
            );
        }
        let refused = opened(&whole[..whole.len() / 2], &[]).await;
        assert!(matches!(refused, Err(StoreError::Damaged(_))), "{refused:?}");
    }
}
