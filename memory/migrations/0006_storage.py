from django.db import migrations


class Migration(migrations.Migration):
    """Why: docs/decisions/0018. No row is touched; each statement holds its lock for a moment."""

    dependencies = [
        ('memory', '0005_warm_answers'),
    ]

    operations = [
        migrations.RunSQL(
            'ALTER TABLE memory_memoryuser SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05)',
            'ALTER TABLE memory_memoryuser RESET (fillfactor, autovacuum_vacuum_scale_factor)',
        ),
        migrations.RunSQL(
            'ALTER TABLE memory_snapshot SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05)',
            'ALTER TABLE memory_snapshot RESET (fillfactor, autovacuum_vacuum_scale_factor)',
        ),
        migrations.RunSQL(
            'ALTER TABLE memory_snapshotmemory SET (autovacuum_vacuum_scale_factor = 0.02)',
            'ALTER TABLE memory_snapshotmemory RESET (autovacuum_vacuum_scale_factor)',
        ),
        migrations.RunSQL(
            'ALTER TABLE memory_snapshotmemory ALTER COLUMN vector SET STORAGE EXTERNAL',
            'ALTER TABLE memory_snapshotmemory ALTER COLUMN vector SET STORAGE EXTENDED',
        ),
    ]
