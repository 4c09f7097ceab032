"A network whose inverse is known, for tests of what stands around a network."
import torch
from torch import nn
from privreid.deploy import Anonymizer, Recovery

class Negative(nn.Module):
    "Its inverse is itself."
    size = 16, 8
    def forward(self, x): return -x

def net_of(kind, mark:str='0'*32): # kind: Anonymizer or Recovery; mark: of the pair
    return kind(Negative(), mark, 'w/o U', torch.device('cpu'), 8)

def pair_of(): return net_of(Anonymizer), net_of(Recovery)
