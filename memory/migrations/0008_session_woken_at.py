from django.db import migrations, models


class Migration(migrations.Migration):
    """A column without a value: PostgreSQL rewrites no row, and holds its lock for a moment."""

    dependencies = [
        ('memory', '0007_removing'),
    ]

    operations = [
        migrations.AddField(
            model_name='session',
            name='woken_at',
            field=models.DateTimeField(help_text='When the sweeper last told a worker of it.', null=True),
        ),
    ]
