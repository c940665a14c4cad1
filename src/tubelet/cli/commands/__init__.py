"""The commands, in the order in which the help lists them. Each one calls one public function and prints what it returned."""

# isort: off
from tubelet.cli.commands import pretrain as pretrain
from tubelet.cli.commands import check as check
from tubelet.cli.commands import plan as plan
from tubelet.cli.commands import prepare as prepare
from tubelet.cli.commands import caption as caption
from tubelet.cli.commands import bench as bench
from tubelet.cli.commands import report as report
from tubelet.cli.commands import replay as replay
from tubelet.cli.commands import features as features
from tubelet.cli.commands import language as language
from tubelet.cli.commands import finetune as finetune
from tubelet.cli.commands import export as export
from tubelet.cli.commands import convert as convert
from tubelet.cli.commands import pictures as pictures
from tubelet.cli.commands import showing as showing
from tubelet.cli.commands import playground as playground
from tubelet.cli.commands import listing as listing
# isort: on
