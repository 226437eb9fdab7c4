from django.db import migrations, models


class Migration(migrations.Migration):
    """A column with a constant default: PostgreSQL rewrites no row, and holds its lock for a moment."""

    dependencies = [
        ('memory', '0006_storage'),
    ]

    operations = [
        migrations.AddField(
            model_name='job',
            name='removing',
            field=models.BooleanField(
                db_default=False, default=False, help_text='Second copies are being removed.'
            ),
        ),
    ]
