from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('memory', '0003_message_job'),
    ]

    operations = [
        migrations.AddField(
            model_name='project',
            name='upstream_key',
            field=models.CharField(blank=True, help_text="That server's key. Never shown again.", max_length=500),
        ),
        migrations.AddField(
            model_name='project',
            name='upstream_url',
            field=models.CharField(blank=True, help_text="A Mem0 server of its own; empty: the service's.", max_length=500, verbose_name='upstream'),
        ),
    ]
