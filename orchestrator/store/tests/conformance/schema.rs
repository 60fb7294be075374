//! The schema: the same on both engines, migrated safely, every statement prepared.

use std::collections::BTreeSet;

use sealift_store::{Db, STATEMENTS, Statement};

use crate::harness::{Raw, World, config, conformance, on_postgres, on_sqlite};

conformance![
    every_statement_can_be_prepared,
    migrations_run_twice_change_nothing,
    an_interrupted_migration_leaves_nothing,
    what_history_hangs_on_cannot_be_taken_away,
];

fn all() -> impl Iterator<Item = &'static Statement> {
    STATEMENTS.iter().copied().flatten()
}

async fn every_statement_can_be_prepared(world: World) {
    for statement in all() {
        let prepared = world.db.prepare(statement.sql).await;
        assert!(
            prepared.is_ok(),
            "{} {}: {prepared:?}",
            statement.file,
            statement.name
        );
    }
}

#[test]
fn state_is_written_by_one_statement_per_machine() {
    for table in ["promotions", "jobs", "tasks"] {
        let update = format!("UPDATE {table} SET");
        let writers: Vec<_> = all()
            .filter(|statement| statement.sql.starts_with(&update))
            .filter(|statement| statement.sql.split("WHERE").next().unwrap().contains(" state = "))
            .collect();
        assert_eq!(writers.len(), 1, "{writers:?}");
        assert!(
            writers[0].sql.contains("WHERE id = $1 AND version = $2"),
            "{writers:?}"
        );
    }
    // A machine's rows are never changed without a version check.
    for statement in all() {
        let guarded = ["promotions", "jobs", "tasks"]
            .iter()
            .any(|table| statement.sql.starts_with(&format!("UPDATE {table} ")));
        assert!(
            !guarded || statement.sql.contains("version = $2"),
            "{statement:?}"
        );
    }
}

async fn migrations_run_twice_change_nothing(world: World) {
    world.db.close().await;
    let mut raw = Raw::open(&world.config.url).await;
    let before = columns(&mut raw).await;
    Db::open(&world.config).await.unwrap().close().await;
    assert_eq!(columns(&mut raw).await, before);
}

/// A process that dies in the middle of a migration leaves an open transaction, which the database rolls back.
async fn an_interrupted_migration_leaves_nothing(world: World) {
    world.db.close().await;
    let fresh = match world.config.url.strip_prefix("sqlite:") {
        Some(path) => format!("sqlite:{path}.fresh"),
        None => world.config.url.clone(),
    };
    let mut raw = Raw::open(&fresh).await;
    let half = match &raw {
        Raw::Sqlite(_) => include_str!("../../../../migrations/sqlite/0001_initial.sql"),
        Raw::Postgres(_) => {
            raw.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
                .await
                .unwrap();
            include_str!("../../../../migrations/postgres/0001_initial.sql")
        }
    };
    raw.run("BEGIN").await.unwrap();
    raw.run(half.split("-- Evidence and logs.").next().unwrap())
        .await
        .unwrap();
    raw.end().await;
    let db = Db::open(&config(fresh)).await.unwrap();
    crate::seed::Seed::sow(&db, "acme", 1).await;
}

#[tokio::test]
async fn on_postgres_two_replicas_migrate_at_once() {
    on_postgres(async |world: World| {
        world.db.close().await;
        let mut raw = Raw::open(&world.config.url).await;
        raw.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            .await
            .unwrap();
        let (one, two) = futures::join!(Db::open(&world.config), Db::open(&world.config));
        one.unwrap().ping().await.unwrap();
        two.unwrap().ping().await.unwrap();
    })
    .await;
}

/// Table, column, nullability.
async fn columns(raw: &mut Raw) -> BTreeSet<(String, String, String)> {
    let sql = match raw {
        Raw::Sqlite(_) => {
            "SELECT m.name, c.name, CASE WHEN c.\"notnull\" = 1 THEN 'not null' ELSE 'null' END \
             FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table' \
             AND m.name NOT LIKE 'sqlite_%' AND m.name <> '_sqlx_migrations'"
        }
        Raw::Postgres(_) => {
            "SELECT table_name::text, column_name::text, \
             CASE WHEN is_nullable = 'NO' THEN 'not null' ELSE 'null' END FROM information_schema.columns \
             WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'"
        }
    };
    raw.texts(sql).await.into_iter().collect()
}

/// What every reference does when the row that it names is deleted or renamed: table, `on delete`, `on update`.
async fn references(raw: &mut Raw) -> Vec<(String, String, String)> {
    let sql = match raw {
        Raw::Sqlite(_) => {
            "SELECT m.name, f.on_delete, f.on_update FROM sqlite_master m JOIN pragma_foreign_key_list(m.name) f \
             WHERE m.type = 'table' AND f.seq = 0"
        }
        Raw::Postgres(_) => {
            "SELECT conrelid::regclass::text, \
             CASE confdeltype WHEN 'r' THEN 'RESTRICT' ELSE confdeltype::text END, \
             CASE confupdtype WHEN 'r' THEN 'RESTRICT' ELSE confupdtype::text END \
             FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace"
        }
    };
    raw.texts(sql).await
}

async fn what_history_hangs_on_cannot_be_taken_away(world: World) {
    let seed = crate::seed::Seed::sow(&world.db, "acme", 1).await;
    seed.deployment(&world.db, crate::harness::at(0)).await;
    world.db.close().await;
    let mut raw = Raw::open(&world.config.url).await;
    let references = references(&mut raw).await;
    assert!(references.len() > 60, "{}", references.len());
    for (table, on_delete, on_update) in references {
        assert_eq!(
            (on_delete.as_str(), on_update.as_str()),
            ("RESTRICT", "RESTRICT"),
            "a reference of {table}"
        );
    }
    for delete in [
        "DELETE FROM tenants",
        "DELETE FROM environments",
        "DELETE FROM targets",
        "DELETE FROM agents",
        "DELETE FROM components",
        "DELETE FROM projects",
        "DELETE FROM releases",
        "DELETE FROM promotions",
        "DELETE FROM jobs",
    ] {
        let refused = raw.run(delete).await.unwrap_err();
        let refused = refused.as_database_error().unwrap().message().to_lowercase();
        // Releases refuse by themselves, before anything that names them is asked.
        assert!(
            refused.contains("foreign key") || refused.contains("releases"),
            "{delete}: {refused}"
        );
    }
}

/// Table and name of every index that is not a constraint's, and whether it is unique.
async fn indexes(raw: &mut Raw) -> BTreeSet<(String, String, String)> {
    let sql = match raw {
        Raw::Sqlite(_) => {
            "SELECT tbl_name, name, CASE WHEN sql LIKE 'CREATE UNIQUE%' THEN 'unique' ELSE '' END \
             FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        }
        Raw::Postgres(_) => {
            "SELECT tablename::text, indexname::text, \
             CASE WHEN indexdef LIKE 'CREATE UNIQUE%' THEN 'unique' ELSE '' END FROM pg_indexes \
             WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations' \
             AND indexname NOT IN (SELECT conname FROM pg_constraint)"
        }
    };
    raw.texts(sql).await.into_iter().collect()
}

#[tokio::test]
async fn on_postgres_and_sqlite_the_schema_is_the_same() {
    on_postgres(async |postgres: World| {
        on_sqlite(async |sqlite: World| {
            let (mut here, mut there) = (
                Raw::open(&sqlite.config.url).await,
                Raw::open(&postgres.config.url).await,
            );
            let (ours, theirs) = (columns(&mut here).await, columns(&mut there).await);
            assert_eq!(
                ours.symmetric_difference(&theirs).collect::<Vec<_>>(),
                Vec::<&_>::new()
            );
            assert!(ours.len() > 200, "{}", ours.len());
            let (ours, theirs) = (indexes(&mut here).await, indexes(&mut there).await);
            assert_eq!(
                ours.symmetric_difference(&theirs).collect::<Vec<_>>(),
                Vec::<&_>::new()
            );
        })
        .await;
    })
    .await;
}
