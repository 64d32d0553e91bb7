//! The only place that speaks to the database: transactions, versions, migrations, change notification.
