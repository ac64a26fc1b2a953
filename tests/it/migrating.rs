//! The schema is brought up to date while replicas work.

use crate::harness::world;

#[test]
fn a_migration_that_gets_no_lock_lets_others_by_and_tries_again() {
    world(async |world| {
        // The last migration is to be done again, and somebody holds what it needs.
        let undone = "delete from _sqlx_migrations where version = 17";
        assert_eq!(sqlx::query(undone).execute(&world.pool).await.expect("its row").rows_affected(), 1);
        let lock = world.lock_table("submission").await;
        let mut command = world.command();
        command.arg("migrate");
        let mut migrating = world.spawn(command);
        for _ in 0..2 {
            let is_blocked = async |wanted: i64| (world.count_blocked().await == wanted).then_some(());
            world.wait_for("the migration to wait", async || is_blocked(1).await).await;
            world.wait_for("the migration to give way", async || is_blocked(0).await).await;
            assert!(migrating.is_running(), "{}", migrating.log());
        }
        lock.rollback().await.expect("the lock goes");
        assert_eq!(migrating.exit().await.code(), Some(0), "{}", migrating.log());
        assert_eq!(
            world.count("select count(*) from _sqlx_migrations where version = 17 and success").await,
            1
        );
    });
}
