-- When training heard that the task was deleted; null: it is there, as far as is known.
ALTER TABLE run ADD COLUMN task_deleted_at timestamptz;

-- Checkpoints from which no start resumes were kept until now: these runs are looked at once more.
UPDATE run SET files_swept_at = NULL
WHERE files_swept_at IS NOT NULL AND model_id IS NOT NULL
  AND end_reason IN ('COMPLETED', 'ACCURACY_REACHED', 'DURATION_REACHED');
