# Prints what libfsntfs says of an image: one line for each name below the root.
import hashlib
import sys

import pyfsntfs


def hexed(text):
    return text.encode("utf-8", "surrogatepass").hex() or "-"


def digest(source):
    whole = hashlib.sha256()
    source.seek(0)
    while piece := source.read(1 << 20):
        whole.update(piece)
    return whole.hexdigest()


def attempt(work):
    try:
        return str(work())
    except OSError:
        return "error"


def show_named(entry, path):
    # A name with a lone surrogate is an error to it.
    try:
        path = path + [entry.get_name()]
    except OSError:
        print("unnamed")
        return
    show(entry, path)


def show(entry, path):
    folder = entry.has_directory_entries_index()
    facts = [
        entry.get_file_reference() & (1 << 48) - 1,
        "folder" if folder else entry.get_size(),
        entry.get_creation_time_as_integer(),
        entry.get_modification_time_as_integer(),
        entry.get_access_time_as_integer(),
        entry.get_entry_modification_time_as_integer(),
        entry.get_file_attribute_flags(),
        "-" if folder or not entry.has_default_data_stream() else attempt(lambda: digest(entry)),
        attempt(lambda: (entry.get_security_descriptor_data() or b"").hex() or "-"),
    ]
    streams = [f"{hexed(s.get_name())}={attempt(lambda: digest(s))}" for s in entry.alternate_data_streams]
    print("/".join(map(hexed, path)), *facts, ",".join(sorted(streams)) or "-")
    if folder:
        for n in range(entry.get_number_of_sub_file_entries()):
            below = entry.get_sub_file_entry(n)
            # The file system's own files, and the root's entry for itself.
            if below.get_file_reference() & (1 << 48) - 1 >= 16:
                show_named(below, path)


volume = pyfsntfs.volume()
volume.open(sys.argv[1])
show(volume.get_root_directory(), [])
