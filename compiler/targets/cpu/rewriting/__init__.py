"""P systems as C++: rules, multisets and derivation modes become tables and specialised code."""
