
BaseVersionTooOldtoo old
base_version
current_version
first_version