#!/usr/bin/env bash
# topohub 1.5.1: for 11 of the 26 SNDlib networks, "pos" and the links' "dist" are pixels of a drawing read as
# degrees of longitude and latitude, and turned into kilometres.
#
# Seen: "france" has links of up to 17,793 km, "newyork" of 17,586 km, "atlanta" of 18,652 km; latitudes go up to
# hundreds of degrees.
# Expected: the package says that positions "are stored as (longitude, latitude)" unless otherwise noted, that dist
# is the "link length in kilometers", and notes nothing for SNDlib. In SNDlib's XML format the element nodes says
# which it is (coordinatesType "pixel" or "geographical"); its native format, which topohub reads, has the numbers
# only. A latitude is at most 90, and mainland France is about 1,000 km across.
# Why it matters: delays from dist / 200 km per ms are too long by a factor of ten and more on these networks: 89 ms
# one way on a link inside France, about as much as straight from Paris to Sydney.
# Right value: refuse a network with any |longitude| > 180 or |latitude| > 90, and set delays by hand there; note
# that some of the others might be pixels that happen to be small.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet topohub==1.5.1
"$work/venv/bin/python" - <<'PYTHON'
from importlib.resources import files

import topohub

print("topohub", topohub.__version__)
names = sorted(path.name.removesuffix(".json") for path in (files(topohub) / "data" / "sndlib").iterdir())
names = [name for name in names if not name.startswith("__")]
wrong = {}
for name in names:
    network = topohub.get(f"sndlib/{name}")
    if any(abs(lon) > 180 or abs(lat) > 90 for lon, lat in (node["pos"] for node in network["nodes"])):
        wrong[name] = network
print(f"{len(wrong)} of {len(names)} networks with places that are not on Earth:")
for name, network in wrong.items():
    latitude = max(node["pos"][1] for node in network["nodes"])
    longest = max(link["dist"] for link in network["edges"])
    print(f"  {name:8} highest latitude {latitude:7.1f} degrees, longest link {longest:9.1f} km")
assert "positions are stored as (longitude, latitude)" in " ".join(topohub.__doc__.split())
assert len(wrong) == 11 and len(names) == 26, "the coordinates have been mended, or other networks added"
assert max(link["dist"] for link in wrong["france"]["edges"]) > 17_000
PYTHON
