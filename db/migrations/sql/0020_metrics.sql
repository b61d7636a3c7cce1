-- What monitoring counts of tasks is read from an index of those that are not finished. Statements are separated by a
-- line of four dashes.
DROP INDEX ix_tasks_live
----
CREATE INDEX ix_tasks_live ON tasks (status, priority DESC, created_at)
    WHERE status IN ('PENDING', 'SPLITTING', 'READY', 'PROCESSING')
