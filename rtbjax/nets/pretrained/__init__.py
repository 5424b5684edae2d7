"""Networks of Hugging Face diffusers and transformers, read from and written to their model folders.

`load` reads a network by the class that its config names, `build` makes one with fresh parameters from a config, `save`
writes a folder that diffusers or transformers load again; `stable_diffusion.load` reads a whole pipeline, `ddit.load`
the masked diffusion language models SEDD and MDLM.
"""

from rtbjax.nets.pretrained import adapters as adapters
from rtbjax.nets.pretrained import autoencoder as autoencoder
from rtbjax.nets.pretrained import clip as clip
from rtbjax.nets.pretrained import ddit as ddit
from rtbjax.nets.pretrained import stable_diffusion as stable_diffusion
from rtbjax.nets.pretrained import tokenizer as tokenizer
from rtbjax.nets.pretrained import unet as unet
from rtbjax.nets.pretrained.folder import PretrainedError as PretrainedError
from rtbjax.nets.pretrained.model import Model as Model
from rtbjax.nets.pretrained.model import build as build
from rtbjax.nets.pretrained.model import load as load
from rtbjax.nets.pretrained.model import load_scheduler as load_scheduler
from rtbjax.nets.pretrained.model import save as save
