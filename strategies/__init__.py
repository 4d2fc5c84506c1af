"""Algorithms of federated and decentralized learning, each in a file of its own."""

SERVER = "bvr_l_sgd fedasync fedavgm fedbuff feddyn fednova fedpage fedprox fedvarp mifa mimelite scaffold"
PEER = "adpsgd choco dpsgd dpsgd_curriculum epidemic gossip gradient_tracking one_peer push_sum teleportation"

MOVED = {
    **{f"strategies.{name}": f"strategies.server.{name}" for name in SERVER.split()},
    **{f"strategies.{name}": f"strategies.peer.{name}" for name in PEER.split()},
    "strategies.fedamd": "strategies.fedamd.fedamd",
    "strategies.modest": "strategies.modest.modest",
    "strategies.modest_flower": "strategies.modest.relay",
}
"""Where modules have gone, by their former names; dotted paths of experiment files find them for one more version."""
