"""What all commands share: flags, errors, folders, pictures, tables."""
