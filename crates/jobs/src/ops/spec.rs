//! What a node has to know of an instance, with all parameters filled in.

use model::{Instance, Params, State};

use crate::agent::{DiskRef, InstanceSpec, NicRef};

/// The disks of an instance.
pub fn disks(state: &State, instance: &Instance) -> Vec<DiskRef> {
    let file_storage_dir = state.cluster.as_ref().map_or_else(String::new, |cluster| cluster.file_storage_dir.clone());
    instance
        .disks
        .iter()
        .enumerate()
        .map(|(index, disk)| DiskRef {
            instance: instance.name.clone(),
            index,
            template: instance.disk_template,
            file_storage_dir: file_storage_dir.clone(),
            disk: disk.clone(),
        })
        .collect()
}

/// The instance; `hvparams` and `beparams` of one start overlay its own.
pub fn spec(state: &State, instance: &Instance, hvparams: &Params, beparams: &Params) -> InstanceSpec {
    let overlaid = |own: &Params, once: &Params| {
        let mut params = own.clone();
        params.extend(once.clone());
        params
    };
    let os = instance.os.split('+').next().unwrap_or_default();
    let mut osparams = state
        .cluster
        .as_ref()
        .and_then(|cluster| cluster.os.get(os))
        .map_or_else(Params::new, |settings| settings.osparams.clone());
    osparams.extend(instance.osparams.clone());
    InstanceSpec {
        id: instance.id,
        name: instance.name.clone(),
        primary: state.node_name(instance.primary),
        secondaries: instance.secondaries.iter().map(|id| state.node_name(*id)).collect(),
        hypervisor: instance.hypervisor.clone(),
        os: instance.os.clone(),
        hvparams: state.filled_hvparams(&instance.hypervisor, &overlaid(&instance.hvparams, hvparams)),
        beparams: state.filled_beparams(&overlaid(&instance.beparams, beparams)),
        osparams,
        disks: disks(state, instance),
        nics: instance
            .nics
            .iter()
            .map(|nic| NicRef {
                mac: nic.mac.clone(),
                ip: nic.ip.clone(),
                params: state.filled_nicparams(&nic.params),
                uuid: nic.uuid.to_string(),
                name: nic.name.clone(),
            })
            .collect(),
    }
}
