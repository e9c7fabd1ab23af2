"""From atomic features to the values of a target."""
