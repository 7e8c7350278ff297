"""How tests go up and down the migrations."""

from alembic.config import Config

from forvalue_index.store.catalog.database import migrations_directory


def configuration(connection=None):
    """Alembic's, of the migrations that the package carries."""
    config = Config()
    config.set_main_option("script_location", str(migrations_directory()))
    config.attributes["connection"] = connection
    return config
