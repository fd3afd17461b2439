//! The database: typed operations and migrations. The only room with SQL.
