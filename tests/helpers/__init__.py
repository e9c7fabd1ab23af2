"""What tests share and import plainly; fixtures are in the conftest files."""
