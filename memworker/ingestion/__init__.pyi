from .cluster.runner import COMMITS as COMMITS, OnRay as OnRay
from .dry_run import IngestPlan as IngestPlan, plan_ingest as plan_ingest
from .export import embed_to_file as embed_to_file
from .fields import Fields as Fields
from .job import ingest as ingest
from .loop import Afar as Afar, RunningJob as RunningJob
from .readers import Dialect as Dialect, read as read, read_lines as read_lines
from .reembedding import ReembedReport as ReembedReport, reembed as reembed
from .report import IngestReport as IngestReport
from .runs import Run as Run, list_runs as list_runs
from .stop import Stop as Stop
from .sync.folder import sync_folder as sync_folder
from .sync.outcome import SyncReport as SyncReport
from .table_file import export_table as export_table
