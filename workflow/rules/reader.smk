# Files of parameters, read before Snakemake reads them: it takes the last of two equal keys without a word, and names
# neither the file nor the line that is not YAML.
import sys
from pathlib import Path

from diffsiam import schema
from diffsiam.errors import UserError

try:
    for file in [*filter(Path.exists, [Path(PARAMS)]), *workflow.overwrite_configfiles]:
        schema.parse(str(file))
except UserError as e:
    print(e, file=sys.stderr)
    sys.exit(2)
